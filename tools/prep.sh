#!/bin/sh
# Notebooks are the source: clean and format them, export the modules, write the README.
# Running it twice changes nothing.
set -eu
nbdev_clean
black --quiet nbs
nbdev_export
black --quiet stylegen
jupyter nbconvert --log-level=WARN --to markdown \
    --RegexRemovePreprocessor.patterns='["\\A#\\s?\\|\\s*hide"]' \
    --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=remove-input \
    --output-dir . --output README nbs/index.ipynb
