# One place for every command. A machine with Python 3.10 or newer is enough: each target makes `.venv` by itself, and
# installs again only when pyproject.toml has changed. Without make, see "Without make" in README.md.
#
#   make demo                 start a server on the example models, ask it, leave it running (ARGS=--once: stop it)
#   make test                 all tests (ARGS="-m 'not slow'", ARGS=tests/wire, ...)
#   make check                what must pass on every commit: format, lint, types, tests
#   make bench                the benchmarks (ARGS are passed on)
#   make soak                 random lives of drivers and schedulers, a minute of them (ARGS="--minutes=60")
#   make soak-processes       a minute of traffic over models whose processes are killed, stopped and reloaded
#   make soak-models          500 loads and unloads under traffic; is anything lost, or left behind?
#   make format               format the source

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
# One stamp for each extra of pyproject.toml: the demo needs much less than the tests.
EXAMPLES := $(VENV)/installed-examples
DEV := $(VENV)/installed-dev
SOURCES := src tests examples bench protos
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check soak soak-processes soak-models bench format lint types

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/installed-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "merrow needs Python 3.10 or newer, and there is none: make PYTHON=/path/to/python"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }
	$(RUN) -m pip install --quiet --upgrade "pip>=23"
	$(RUN) -m pip install --quiet --editable ".[$*]"
	@touch $@

demo: $(EXAMPLES)
	$(RUN) -m examples.demo $(ARGS)

test: $(DEV)
	$(RUN) -m pytest $(ARGS)

check: lint types test

lint: $(DEV)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m ruff check $(SOURCES)

types: $(DEV)
	$(RUN) -m mypy --strict src

soak-processes: $(DEV)
	$(RUN) -m tests.e2e.chaos $(ARGS)

soak-models: $(DEV)
	$(RUN) -m bench.model_life $(ARGS)

bench: $(DEV)
	$(RUN) -m bench $(ARGS)

soak: $(DEV)
	$(RUN) -m tests.soak $(ARGS)

format: $(DEV)
	$(RUN) -m ruff format $(SOURCES)
	$(RUN) -m ruff check --fix $(SOURCES)
