# "make" checks everything. "make help" lists the rest. All runs in .venv, which is made on first use.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := check
.DELETE_ON_ERROR:
.PHONY: help check demo test test-homeassistant test-node-red format format-check lint types schemas schemas-check fuzz bench simulate chaos mutations clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

check: format-check lint types schemas-check test ## Everything below that can fail (the default)

demo: $(VENV)/.embedded ## The bridge, a broker and a simulated gateway: watch an SMS go out and its report come back
	$(PY) -m bridge demo $(ARGS)

test: $(VENV)/.dev ## The tests; ARGS="-k words -x" goes to pytest
	$(PY) -m pytest $(ARGS)

test-homeassistant: $(VENV)/.dev ## Everything Home Assistant shows and does, in a real one (Python 3.13; a minute to install)
	PYTHON=$(PY) tests/homeassistant/run $(ARGS)

test-node-red: $(VENV)/.dev ## The flows of examples/node-red in a real Node-RED, the AsyncAPI document in its parser, the simulator at another server
	PYTHON=$(PY) tests/node-red/run $(ARGS)

format: $(VENV)/.dev ## Format the code, and mend what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

format-check: $(VENV)/.dev
	$(PY) -m ruff format --check .

lint: $(VENV)/.dev ## ruff
	$(PY) -m ruff check .

types: $(VENV)/.dev ## mypy --strict
	$(PY) -m mypy

schemas: $(VENV)/.dev ## Write schemas/ anew from the code
	$(PY) -m bridge schema --write schemas

schemas-check: $(VENV)/.dev
	$(PY) -m bridge schema --check schemas

fuzz: $(VENV)/.dev ## Search for input that does harm; ARGS="--seconds 600 --target datagrams --save"
	cd tests && ../$(PY) -m fuzz $(ARGS)

bench: $(VENV)/.dev ## Measure
	$(PY) -m benchmarks $(ARGS)

SECONDS ?= 60
simulate: $(VENV)/.dev ## The whole bridge in a virtual world, for SECONDS=60; ARGS="--scenario storm --seed 7" replays
	cd tests && ../$(PY) -m reliability.simulation --seconds $(SECONDS) $(ARGS)
	$(if $(ARGS),,cd tests && ../$(PY) -m reliability.two_bridges --seconds $$(( $(SECONDS) / 2 )))

chaos: $(VENV)/.dev ## Real processes under kill -9 and a bad network; ARGS="--seed 7 --kills 200", see ARGS=--help
	cd tests && ../$(PY) -m reliability.chaos $(ARGS)
	$(if $(ARGS),,cd tests && ../$(PY) -m reliability.chaos_two_bridges)

mutations: $(VENV)/.dev ## Break the bridge in two dozen ways: simulation and chaos must notice each (a quarter of an hour)
	cd tests && ../$(PY) -m reliability.mutations $(ARGS)

clean: ## Remove the environment and all that was generated
	rm -rf $(VENV) .venv-homeassistant .node build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bridge tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The environment ------------------------------------------------------------------------------------------
# The stamps say what is installed, and are out of date when pyproject.toml is newer.

INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check

$(VENV)/.dev: pyproject.toml | $(PY)
	@echo "Installing the bridge, and what its tests and checks need, into $(VENV): once, half a minute to two"
	@$(INSTALL) --editable '.[embedded,dev]'
	@touch $(VENV)/.embedded $@

$(VENV)/.embedded: pyproject.toml | $(PY)
	@echo "Installing the bridge and a broker in Python into $(VENV): once, a quarter of a minute to one"
	@$(INSTALL) --editable '.[embedded]'
	@touch $@

# Debian's python3 has no ensurepip, and so no complete venv, until python3-venv is installed; its pip, where there is
# one, can fill an empty environment from outside.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "goip-mqtt-bridge needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there)."; \
	    echo "Name another one: make PYTHON=python3.12"; \
	    exit 1; \
	} >&2
	@rm -rf $(VENV)
	@echo "Making an environment of $$($(PYTHON) --version) in $(VENV): a few seconds"
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --quiet --python $(PY) install pip; \
	elif $(PYTHON) -m virtualenv --version >/dev/null 2>&1; then \
	    $(PYTHON) -m virtualenv --quiet --python "$$(command -v $(PYTHON))" $(VENV); \
	else \
	    echo "$(PYTHON) can make no virtual environment here. On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	    exit 1; \
	fi || { rm -rf $(VENV); exit 1; }
