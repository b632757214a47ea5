#!/bin/sh
# Notebooks are the source: clean and format them, export the modules, write the README.
# Running it twice changes nothing.
set -eu
nbdev_clean
black --quiet nbs
sh tools/export.sh
