# Every target works as the first command in a fresh clone on Debian 12.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PREFIX ?= /usr/local
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
STAMP := $(VENV)/.installed
NATIVE := $(wildcard modamafs/*/*.c)

.PHONY: help setup demo check test bench docs install uninstall clean

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## install the system packages that are missing, make .venv, install modamafs into it

$(VENV)/.apt: apt-packages.txt
	@missing=$$(for p in $$(grep -v '^#' apt-packages.txt); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@mkdir -p $(VENV) && touch $@

$(STAMP): $(VENV)/.apt pyproject.toml setup.py $(NATIVE)
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing modamafs and what it needs into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip setuptools wheel
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## see it work: a store, a mount, a seal, a killed daemon (needs root)
	@$(SUDO) $(BIN)/modamafs demo

check: $(STAMP) ## style, types, layers, the C part under sanitizers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/native --sanitize

test: $(STAMP) ## all tests (needs root and /dev/fuse)
	$(SUDO) $(BIN)/pytest $(ARGS)

bench: $(STAMP) ## every figure beside bare, bindfs, mergerfs and plain pyfuse3
	$(SUDO) $(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMP) ## the HTML documentation and the man page, in build/
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/sphinx-build -q -W -b html docs build/html
	$(BIN)/sphinx-build -q -W -b man docs build/man

clean:
	rm -rf build *.egg-info $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
