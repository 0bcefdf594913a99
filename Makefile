# `make demo` and `make test` set everything up by themselves, in .venv, from the pinned versions in requirements.lock.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
# what `make oldest` runs: what needs no newer library than the package itself; references come from the pinned versions
OLDEST := tests/cli tests/common tests/data tests/diffusion tests/networks tests/samplers tests/interop tests/training tests/test_model.py tests/test_generation.py --ignore tests/samplers/test_samplers_diffusers.py --deselect tests/cli/test_cli_help.py::test_references_are_current

.PHONY: help demo test check release oldest docs bench gpu torture fuzz mutants lock clean
help:
	@echo "make demo     install, draw digits with the bundled model, train one from scratch (about five minutes)"
	@echo "make test     install everything, lint, check types, run the whole test suite"
	@echo "make check    lint, check types, layers, documentation and the wheel, without the tests"
	@echo "make release  build the wheel and the sdist into dist/ and install them into an empty environment; uploads nothing"
	@echo "make oldest   run tests with the oldest versions of all dependencies that pyproject.toml allows"
	@echo "make docs     write the references and build the documentation site into site/"
	@echo "make bench    compare speed with other libraries on this machine"
	@echo "make gpu      tests, speed, a profile and minutes of CIFAR-10 on a GPU"
	@echo "make torture  kill training runs 100 times and compare what they end with"
	@echo "make fuzz     feed hostile files to every reader"
	@echo "make mutants  plant one-line errors in the source and count those that the tests notice (hours)"
	@echo "make lock     resolve the pinned versions again"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.core

$(VENV)/.peers: $(VENV)/.dev
	$(PIP) --editable '.[dev,peers]'
	touch $@

demo: $(VENV)/.core
	mkdir -p demo
	$(BIN)/ddpm sample digits --labels all --guidance 1.5 --num 100 --columns 10 --out demo/bundled.png --overwrite
	rm -rf demo/run
	$(BIN)/ddpm train digits --out demo/run
	$(BIN)/ddpm sample demo/run --labels all --guidance 1.5 --num 100 --columns 10 --out demo/samples.png --overwrite
	@echo "Look at demo/bundled.png (the bundled model) and demo/samples.png (the one just trained)."

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/make_reference.py --check
	$(BIN)/mkdocs build --quiet --strict
	$(BIN)/python tools/release.py check

release: $(VENV)/.dev
	$(BIN)/python tools/release.py release

oldest: $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/oldest
	$(BIN)/uv pip install --quiet --python $(VENV)/oldest --resolution lowest-direct '.[data,eval,video,track]' \
	    'diffusers>=0.31' 'hypothesis>=6.100' 'jsonschema>=4.20' 'pytest>=8' 'scikit-image>=0.24'
	$(VENV)/oldest/bin/python -m pytest $(OLDEST)

docs: $(VENV)/.dev
	$(BIN)/python tools/make_reference.py
	$(BIN)/mkdocs build --strict

test: check
	$(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

bench: $(VENV)/.peers
	$(BIN)/python -m experiments.speed.run cpu

gpu: $(VENV)/.peers
	PYTHON=$(BIN)/python bash experiments/speed/gpu.sh

torture: $(VENV)/.dev
	$(BIN)/python tests/campaigns/torture.py

fuzz: $(VENV)/.dev
	$(BIN)/python tests/campaigns/fuzz.py

mutants: $(VENV)/.dev
	$(BIN)/python tools/mutants.py --sample 8

lock: $(VENV)/.dev
	$(BIN)/uv pip compile --universal --all-extras --no-header --no-annotate --no-emit-index-url --python-version 3.11 \
	    pyproject.toml --output-file requirements.lock

clean:
	rm -rf demo
