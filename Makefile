# `make` alone says what there is.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test check bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

run: $(VENV)/.installed  ## install what is missing and start everything, until Ctrl-C (settings: docs/settings.md)
	@$(BIN)/python -m lionweb.local up

test: $(VENV)/.installed-dev  ## run every test, those in a real browser too (ARGS="-k name" for some, JOBS=0 in one process)
	@$(BIN)/python -m tests.find_browser
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(VENV)/.installed-dev  ## lint, types, layers, templates, migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy trainer lionweb experiments
	$(BIN)/lint-imports
	$(BIN)/djade --target-version 5.2 --check $$(git ls-files 'templates/*.html')
	$(BIN)/python manage.py makemigrations --check --dry-run

bench: $(VENV)/.installed-dev  ## run the benchmarks, a JSON object a line (ONLY=name for one)
	@ONLY="$(ONLY)" $(BIN)/python -m tests.bench

clean:  ## remove caches and the virtual environment; the data in var/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when the list changed.
$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "LionWeb needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 run")'
	@echo "Making the virtual environment; the first install takes a few minutes."
	$(PYTHON) -m venv $(VENV)
