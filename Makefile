# `make demo` and `make test` need nothing but Python 3.11 or newer: they make .venv by themselves.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# the first Python that works, unless the caller names one: make test PYTHON=python3.12
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && exit; done; echo python3)

.PHONY: help setup demo test test-slow browser lint types package bench

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.package  ## create .venv from the pinned requirements and install spikelet into it

demo: setup  ## teach, distil, measure and report on handwritten digits, in minutes
	$(BIN)/spikelet demo

test: lint types  ## lint, types, the tests that are not slow, and the built package
	$(BIN)/python -m pytest -n 2 -m "not slow"
	$(BIN)/python tests/check_package.py

test-slow: setup  ## the slow tests only
	$(BIN)/python -m pytest -m slow

browser: setup  ## the pages in headless Chromium, where there is one
	$(BIN)/python -m pytest -m slow tests/test_browser.py

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests benchmarks examples

types: setup  ## mypy on src
	$(BIN)/mypy

package: setup  ## build sdist and wheel, import the wheel in a clean environment
	$(BIN)/python tests/check_package.py

bench: setup  ## time and memory of one training step: ANN, rate, bptt and others; on an idle machine
	$(BIN)/spikelet bench train --steps 2 4 8 --out runs/bench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "spikelet needs Python 3.11 or newer, which '$(PYTHON)' is not;" \
		"install it, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' lacks venv or ensurepip; install your system's python3-venv package." >&2; \
		exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

$(VENV)/.requirements: requirements/dev.txt requirements/oracles.txt | $(BIN)/python
	@echo "installing the pinned requirements into $(VENV); the first time this takes minutes"
	@$(PIP) --requirement requirements/dev.txt
	@$(PIP) --no-deps --requirement requirements/oracles.txt
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.requirements
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
