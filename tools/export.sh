#!/bin/sh
# Export the modules and the README from notebooks that are clean and formatted.
set -eu
nbdev_export
black --quiet stylegen
jupyter nbconvert --log-level=WARN --to markdown \
    --RegexRemovePreprocessor.patterns='["\\A#\\s?\\|\\s*hide"]' \
    --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=remove-input \
    --output-dir . --output README nbs/index.ipynb
