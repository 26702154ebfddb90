# Two commands matter: `make demo` shows what wgeo does, `make test` checks that it does it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCSTAMP := $(VENV)/.docs
DEMO   ?= runs/demo

.PHONY: help install demo test lint types readme commands fuzz coverage mutants docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## install wgeo and its tools into .venv

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"wgeo needs Python 3.11 to 3.13; $(PYTHON) is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(DOCSTAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

demo: $(STAMP)  ## train a small ResNet on digits, analyse it, write the report
	$(BIN)/wgeo demo --out $(DEMO)

lint: $(STAMP)  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy on the package
	$(BIN)/mypy

readme: $(STAMP)  ## run the README's Python example and compare its output
	$(BIN)/python tests/run_readme.py

commands: $(STAMP)  ## run every command and example that the pages show
	OMP_NUM_THREADS=1 $(BIN)/python tests/run_commands.py

test: lint types readme  ## lint, types, README example, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

fuzz: $(STAMP)  ## hostile input to every reader until you stop it (FUZZ="--inputs 100000")
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz_readers.py $(FUZZ)

coverage: $(STAMP)  ## branches of the packages whose numbers matter
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov=wgeo.transport --cov=wgeo.neural_collapse --cov=wgeo.ufm --cov=wgeo.checkpoints --cov=wgeo.geodesic --cov-branch --cov-report=term-missing:skip-covered

mutants: $(STAMP)  ## faults put into the metrics, one at a time: do the tests notice? (SHARE=0.1)
	$(BIN)/python tests/mutants.py --share $(or $(SHARE),1)

docs: $(DOCSTAMP)  ## build the documentation in docs/_build/html; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -P -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:  ## remove the environment, every run and the built pages
	rm -rf $(VENV) runs docs/_build docs/generated
