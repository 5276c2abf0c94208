# make demo   install and run the main job on an embedded dataset: pack, train, evaluate, score
# make test   install, lint, types, import contract, all tests
# Both start from nothing: a Python with its venv module is all they need. Installing again happens only when
# pyproject.toml changes; code changes never need it.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.10 python3,$(shell command -v $(name))))
# Installed first, so that a CPU-only wheel found by pip's own configuration (index, find-links) satisfies the rest.
TORCH ?= torch==2.13.0
VENV := .venv
INSTALLED := $(VENV)/.installed
SECONDS_NOW := date +%s

.PHONY: demo test lint format types venv clean

demo: $(INSTALLED)
	@start=$$($(SECONDS_NOW)); $(VENV)/bin/xmodal demo \
	&& echo "make demo: $$(( $$($(SECONDS_NOW)) - start )) s after the installation"

test: START := $(shell date +%s)
test: lint types
	@echo "make test: $$(( $$($(SECONDS_NOW)) - $(START) )) s for installation, lint and types; now the tests"
	@$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	@$(VENV)/bin/ruff check --quiet . && echo "ruff check: ok"
	@$(VENV)/bin/ruff format --quiet --check . && echo "ruff format: ok" || { echo "run: make format"; exit 1; }
	@$(VENV)/bin/lint-imports --no-logo

format: $(INSTALLED)
	@$(VENV)/bin/ruff check --quiet --fix . ; $(VENV)/bin/ruff format .

types: $(INSTALLED)
	@$(VENV)/bin/mypy

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python found: name one of 3.10 or newer, make PYTHON=/path/to/python3" >&2; exit 2; }
	@start=$$($(SECONDS_NOW)); set -e; \
	echo "installing into $(VENV) with $$($(PYTHON) --version) ($(PYTHON))"; \
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV); \
	echo "  $(TORCH)"; $(VENV)/bin/python -m pip install --quiet --quiet "$(TORCH)"; \
	echo "  xmodal-dist with its dependencies"; $(VENV)/bin/python -m pip install --quiet --quiet --editable ".[dev]"; \
	touch $@; echo "installed in $$(( $$($(SECONDS_NOW)) - start )) s"

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
