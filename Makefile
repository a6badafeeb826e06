# Everything starts here: `make demo` and `make test` do all set-up by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv dev demo test check bench format clean

help:
	@echo 'make demo    the whole loop on real programs (root; installs what it lacks)'
	@echo 'make test    every test (without root the end-to-end part is skipped, and says so)'
	@echo 'make check   formatting, lint, types, direction of imports'
	@echo 'make bench   the speed beside PortSentry, fail2ban and the plain programs (root, over an hour)'
	@echo 'make venv    $(BIN)/jailbridge'

venv: $(VENV)/.installed

dev: $(VENV)/.dev

$(VENV)/.installed: pyproject.toml packaging/prepare
	PYTHON='$(PYTHON)' packaging/prepare build
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: venv
	PYTHON='$(PYTHON)' packaging/prepare demo
	$(BIN)/jailbridge demo

test: dev
	PYTHON='$(PYTHON)' packaging/prepare test
	JAILBRIDGE_E2E='$(JAILBRIDGE_E2E)' $(BIN)/pytest

check: dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: dev
	PYTHON='$(PYTHON)' packaging/prepare test
	$(BIN)/python benchmarks/sensor.py
	$(BIN)/python benchmarks/tailer.py
	$(BIN)/python benchmarks/stores.py
	$(BIN)/python benchmarks/fail2ban.py
	$(BIN)/python benchmarks/boot.py

format: dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) .programs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
