#!/bin/sh
# Fails when the prep sequence would change a notebook, a module or the README.
set -eu
digest() { find nbs stylegen README.md -type f \( -name '*.ipynb' -o -name '*.py' -o -name '*.md' \) \
    -not -path '*/.ipynb_checkpoints/*' -print0 | sort -z | xargs -0 sha256sum; }
before=$(digest)
sh tools/prep.sh
if [ "$before" != "$(digest)" ]; then
    echo "notebooks, stylegen/ and README.md did not agree; 'make prep' has mended it: commit that" >&2
    exit 1
fi
