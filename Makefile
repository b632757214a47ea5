# Two commands matter: `make demo` shows a job, `make test` proves the project. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
# Hundreds of processes run the same modules: they are compiled once, whatever the caller prefers.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := IN_TEST=1 HF_HUB_OFFLINE=1 pytest -q -p no:cacheprovider --durations 15
# Processes with a virtual host, a bucket and ports of their own; a file's tests stay together. Four,
# beside notebooks and checks, for two cores, since many tests wait.
SPREAD := --numprocesses 4 --dist loadfile --no-loadscope-reorder
# Takes both cores by itself, and is timed.
DRY_RUN := tests/test_gpu_dry_run.py
# Debian 13, made by `make rabbitmq4`.
RABBITMQ4 := $(CURDIR)/out/rabbitmq4

.PHONY: help install demo test check notebooks unit coverage prep outputs pocket pocket-report bench gpu gpu-pack faults rabbitmq4 fuzz mutants scale notices hashes sbom lab clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## make .venv and install the project into it

$(VENV)/.installed: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("needs Python 3.11 or later: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## draw one picture by a job, on embedded defaults
	@HF_HUB_OFFLINE=1 $(BIN)/python tools/demo.py

test: install programs  ## everything that must hold, side by side
	HF_HUB_OFFLINE=1 pytest -q -s -p no:cacheprovider $(DRY_RUN)
	@$(MAKE) --no-print-directory --jobs=4 --output-sync=line pytest nbval nbdev check

check: install  ## format, lint, types, names, and whether notebooks, modules and README agree
	@sh tools/check_sync.sh
	python tools/directions.py
	python tools/words.py
	black --check --quiet nbs stylegen tests tools bench worker.py setup.py conftest.py
	flake8 stylegen tests tools bench worker.py setup.py conftest.py
	pylint --score=n stylegen worker.py tools
	@mypy

notebooks: install programs nbdev nbval  ## the notebooks as tests: nbdev_test and strict nbval

unit: install programs  ## the tests of the installed package, on real parts
	$(PYTEST) $(SPREAD) tests

coverage: install programs  ## run the unit tests, print how much of each room they pass through
	rm -rf out/coverage
	IN_TEST=1 HF_HUB_OFFLINE=1 coverage run -m pytest -q -p no:cacheprovider $(SPREAD) --ignore $(DRY_RUN) tests
	coverage combine --quiet
	coverage json --quiet
	python tools/covered.py

.PHONY: nbdev nbval pytest
nbdev:
	HF_HUB_OFFLINE=1 $(BIN)/python tools/nbdev_tests.py --n_workers 1 --timing

nbval:
	$(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout 300 nbs

pytest:
	$(PYTEST) $(SPREAD) --ignore $(DRY_RUN) tests

.PHONY: programs
programs:
	@sh tools/ensure_packages.sh

prep: install  ## clean, format and export the notebooks; write the README
	@sh tools/prep.sh

outputs: install  ## run every notebook and store its outputs
	HF_HUB_OFFLINE=1 $(BIN)/python tools/run_notebooks.py
	@sh tools/prep.sh

pocket: install  ## train the pocket model anew, from its guide (hours; resumes)
	mkdir -p out/pocket
	jupyter nbconvert --log-level=WARN --to script --stdout nbs/guides/pocket_model.ipynb > out/pocket/training.py
	cd nbs/guides && POCKET_TRAINING=full HF_HUB_OFFLINE=1 $(CURDIR)/$(BIN)/python ../../out/pocket/training.py

pocket-report: install  ## measure the packaged pocket model against its bars
	HF_HUB_OFFLINE=1 $(BIN)/python tools/pocket_report.py

bench: install programs  ## the engine beside its peers, speed profiles, schedulers, serving, the worker's and the panel's cost
	HF_HUB_OFFLINE=1 $(BIN)/python bench/engine.py
	HF_HUB_OFFLINE=1 $(BIN)/python bench/profiles.py
	HF_HUB_OFFLINE=1 $(BIN)/python bench/schedulers.py
	$(BIN)/python bench/overhead.py
	HF_HUB_OFFLINE=1 $(BIN)/python bench/playground.py
	HF_HUB_OFFLINE=1 $(BIN)/python bench/serving.py

gpu: install  ## everything that only a GPU can tell, in eight minutes; ARGS are bench/gpu.py's
	HF_HUB_OFFLINE=1 $(BIN)/python bench/gpu.py $(ARGS)

gpu-pack: install  ## pack what a machine with a GPU lacks, and say the line to run there
	$(BIN)/python tools/pack_gpu.py

faults: install programs  ## break every part while jobs run, count what became of them
	$(BIN)/python tests/faults/run.py

rabbitmq4: install programs  ## the broker's tests and faults against RabbitMQ 4, beside the machine's own
	@mkdir -p out
	@sh tools/rabbitmq4.sh $(RABBITMQ4)
	RABBITMQ_ROOT=$(RABBITMQ4) $(PYTEST) $(SPREAD) tests/test_queue.py tests/test_retries.py tests/test_producers.py
	RABBITMQ_ROOT=$(RABBITMQ4) $(BIN)/python tests/faults/run.py --only broker --save

fuzz: install programs  ## try random inputs at every border, for 20 minutes; ARGS are tools/fuzz.py's
	HF_HUB_OFFLINE=1 $(BIN)/python tools/fuzz.py $(ARGS)

mutants: install programs  ## make small mistakes in the code: does a test notice? (an hour)
	$(BIN)/python tools/mutants.py $(ARGS)

scale: install programs  ## throughput and loss with 1, 2, 4 and 8 workers (half an hour)
	$(BIN)/python bench/scale.py

notices: install  ## write NOTICE.md: the licences of what a worker is made of
	$(BIN)/python tools/notices.py

hashes: install  ## write requirements.txt: the digest of each file that a worker is installed from here
	$(BIN)/python tools/hashes.py

sbom: install  ## bill of materials of .venv as CycloneDX, into out/sbom.json
	$(BIN)/python -m venv --without-pip out/cyclonedx
	$(BIN)/pip --python out/cyclonedx/bin/python install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	out/cyclonedx/bin/cyclonedx-py environment --output-reproducible --output-file out/sbom.json $(BIN)/python

lab: install  ## JupyterLab on the playground
	jupyter lab $$([ $$(id -u) -ne 0 ] || echo --allow-root) --notebook-dir nbs nbs/guides/playground.ipynb

clean:  ## remove what was built
	rm -rf $(VENV) build dist out *.egg-info
