#!/bin/sh
# Fails when the prep sequence would change a notebook, a module or the README; tried on a copy, so
# that others may read the checkout meanwhile. Whether notebooks are formatted is black's own check.
set -eu
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard -- \
    nbs stylegen tools settings.ini setup.py pyproject.toml README.md |
    tar --null --files-from - --ignore-failed-read --create | tar --extract --directory "$copy"
(cd "$copy" && nbdev_clean && sh tools/export.sh)
for name in nbs stylegen README.md; do
    diff --brief --recursive --exclude __pycache__ --exclude .ipynb_checkpoints "$name" "$copy/$name" || {
        echo "notebooks, stylegen/ and README.md do not agree: run 'make prep' and commit" >&2
        exit 1
    }
done
