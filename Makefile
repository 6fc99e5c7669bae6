# Every target works as the first command in a fresh clone on Debian 12.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PREFIX ?= /usr/local
# Optional parts that `make install` brings along: [em] reads instrument files. EXTRAS= for none.
EXTRAS ?= [em]
# Of the tests; 0: one after the other. They wait more than they work, so 2 takes a third less time; it
# has not been seen to pass often enough to be the default.
PROCESSES ?= 0
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
NATIVE := $(wildcard modamafs/*/*.c)

.PHONY: help setup demo check test bench docs install uninstall clean

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## install the system packages that are missing, make .venv, install modamafs into it

$(VENV)/.apt: apt-packages.txt
	@missing=$$(for p in $$(grep -v '^#' apt-packages.txt); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; $(SUDO) bash share/setup/install-packages $$missing; fi
	@mkdir -p $(VENV) && touch $@

$(STAMP): $(VENV)/.apt pyproject.toml setup.py $(NATIVE)
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing modamafs and what it needs into $(VENV)"
	@{ $(PIP) --upgrade pip setuptools wheel && $(PIP) --editable '.[dev]'; } >$(VENV)/pip.log 2>&1 \
	  || { cat $(VENV)/pip.log; false; }
	@touch $@

demo: $(STAMP) ## see it work: a store, a mount, a seal, a killed daemon (needs root)
	@$(SUDO) $(BIN)/modamafs demo

check: $(STAMP) ## style, types, layers, the C part under sanitizers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/native --sanitize

test: $(STAMP) ## all tests (needs root and /dev/fuse); PROCESSES=2: side by side
	@$(BIN)/python -m compileall -q modamafs cli  # thousands of processes are started
	$(SUDO) $(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile $(ARGS)

bench: $(STAMP) ## every figure beside bare, bindfs, mergerfs and plain pyfuse3
	$(SUDO) $(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMP) ## the HTML documentation and the man page, in build/
	@$(PIP) --editable '.[docs]' >$(VENV)/pip.log 2>&1 || { cat $(VENV)/pip.log; false; }
	$(BIN)/sphinx-build -q -W -b html docs build/html
	$(BIN)/sphinx-build -q -W -b man docs build/man

LIB := $(PREFIX)/lib/modamafs
PLACE = sed 's|@MODAMAFS@|$(PREFIX)/bin/modamafs|' share/$(1) >$(DESTDIR)$(2) && chmod $(3) $(DESTDIR)$(2)

install: $(VENV)/.apt ## modamafs in $(PREFIX), for mount(8), fstab and systemd (needs root)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/sbin $(DESTDIR)/etc/modamafs $(DESTDIR)/lib/systemd/system
	$(PYTHON) -m venv --clear $(DESTDIR)$(LIB)
	$(DESTDIR)$(LIB)/bin/pip install --quiet --disable-pip-version-check '.$(EXTRAS)'
	sed -i '1s|^#!$(DESTDIR)$(LIB)|#!$(LIB)|' $(DESTDIR)$(LIB)/bin/modamafs
	ln -sfn $(LIB)/bin/modamafs $(DESTDIR)$(PREFIX)/bin/modamafs
	$(call PLACE,sbin/mount.modamafs,/sbin/mount.modamafs,755)
	$(call PLACE,sbin/umount.modamafs,/sbin/umount.modamafs,755)
	ln -sfn mount.modamafs $(DESTDIR)/sbin/mount.fuse.modamafs
	ln -sfn umount.modamafs $(DESTDIR)/sbin/umount.fuse.modamafs
	$(call PLACE,systemd/modamafs@.service,/lib/systemd/system/modamafs@.service,644)
	@if [ -f build/man/modamafs.8 ]; then \
	  install -D -m 644 build/man/modamafs.8 $(DESTDIR)$(PREFIX)/share/man/man8/modamafs.8; \
	else echo "no man page was built: 'make docs install' places it, too"; fi

uninstall: ## take away what install placed; /etc/modamafs, stores and mounts stay
	rm -rf $(DESTDIR)$(LIB)
	rm -f $(DESTDIR)$(PREFIX)/bin/modamafs $(DESTDIR)$(PREFIX)/share/man/man8/modamafs.8 $(DESTDIR)/lib/systemd/system/modamafs@.service \
	  $(addprefix $(DESTDIR)/sbin/,mount.modamafs umount.modamafs mount.fuse.modamafs umount.fuse.modamafs)

clean:
	rm -rf build *.egg-info $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
