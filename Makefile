# make demo   install and run the main job on an embedded dataset: pack, train, evaluate, score
# make test   install, lint, types, import contract, all tests
# make networks-test   the encoders' with timm and transformers, in an environment of their own; part of make test
# make soak   the tests that repeat what others show for longer or on other ground; not part of make test
# make bench  side-by-side benchmarks against the peers, which get an environment of their own; make bench ONLY=b1
# All start from nothing: a Python with its venv module is all they need. Installing again happens only when
# pyproject.toml changes; code changes never need it.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.10 python3,$(shell command -v $(name))))
# Installed first, so that a CPU-only wheel found by pip's own configuration (index, find-links) satisfies the rest.
TORCH ?= torch==2.13.0
VENV := .venv
INSTALLED := $(VENV)/.installed
# Daft needs an older Ray and PyArrow than ours. Without aiohttp, Ray Data's own threads trip over each other's import.
PEERS_VENV := .venv-peers
PEERS := pillow webdataset daft "ray[data]<2.60" numpy "pyarrow<26" aiohttp
PEERS_INSTALLED := $(PEERS_VENV)/.installed
# The wheel of torchvision beside a torch for CPUs alone breaks every import of transformers, so it stays out of $(VENV).
NETWORKS_VENV := .venv-networks
NETWORKS := timm "torchvision<0.29" transformers
NETWORKS_TESTS := tests/encoders tests/train/test_train_finetune.py
NETWORKS_INSTALLED := $(NETWORKS_VENV)/.installed
# They wait for nodes, processes and servers to come and go more than they compute, so they run after those, beside all
# others: one row of tests does not keep two cores busy.
WAITING_TESTS := tests/train/test_train_elastic.py tests/score/test_score_storm.py
SECONDS_NOW := date +%s

.PHONY: demo test networks-test soak bench lint format types venv clean

demo: $(INSTALLED)
	@start=$$($(SECONDS_NOW)); $(VENV)/bin/xmodal demo \
	&& echo "make demo: $$(( $$($(SECONDS_NOW)) - start )) s after the installation"

test: START := $(shell date +%s)
test: lint types
	@echo "make test: $$(( $$($(SECONDS_NOW)) - $(START) )) s for installation, lint and types; now the tests"
	@{ failed=0; $(MAKE) --no-print-directory networks-test || failed=1; \
	   $(VENV)/bin/python -m pytest $(WAITING_TESTS) || failed=1; exit $$failed; } >.tests-beside.log 2>&1 & beside=$$!; \
	failed=0; $(VENV)/bin/python -m pytest $(patsubst %,--ignore=%,$(NETWORKS_TESTS) $(WAITING_TESTS)) || failed=1; \
	wait $$beside || failed=1; cat .tests-beside.log; exit $$failed

networks-test: $(NETWORKS_INSTALLED)
	@OMP_NUM_THREADS=1 $(NETWORKS_VENV)/bin/python -m pytest $(NETWORKS_TESTS)

soak: $(NETWORKS_INSTALLED)
	@OMP_NUM_THREADS=1 $(NETWORKS_VENV)/bin/python -m pytest -m soak

# The figures are JSON lines on standard output; BENCH_OPTIONS="--rows 512 --pairs 3" makes a run shorter.
bench: $(INSTALLED) $(PEERS_INSTALLED)
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks --peers-python $(PEERS_VENV)/bin/python $(BENCH_OPTIONS) $(ONLY)

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

$(PEERS_INSTALLED): Makefile
	@test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	@echo "installing the benchmarks' peers into $(PEERS_VENV)" >&2; set -e; \
	$(PEERS_VENV)/bin/python -m pip install --quiet --quiet "$(TORCH)" >&2; \
	$(PEERS_VENV)/bin/python -m pip install --quiet --quiet $(PEERS) >&2; touch $@

# What $(VENV) holds is there, too, by a .pth file; see tests/encoders/torchvision_operators.py for the other one.
$(NETWORKS_INSTALLED): $(INSTALLED) Makefile tests/encoders/torchvision_operators.py
	@start=$$($(SECONDS_NOW)); set -e; rm -rf $(NETWORKS_VENV); \
	$(VENV)/bin/python -m venv --without-pip $(NETWORKS_VENV); \
	site=$$($(NETWORKS_VENV)/bin/python -c "import site; print(site.getsitepackages()[0])"); \
	main=$$($(VENV)/bin/python -c "import site; print(site.getsitepackages()[0])"); \
	echo "import site; site.addsitedir('$$main')" > $$site/main.pth; \
	cp tests/encoders/torchvision_operators.py $$site; \
	echo "import torchvision_operators" > $$site/torchvision_operators.pth; \
	$(VENV)/bin/python -m pip --quiet --quiet --python $(NETWORKS_VENV)/bin/python install --no-deps --no-compile \
		$(NETWORKS); \
	touch $@; echo "installed timm, torchvision and transformers in $$(( $$($(SECONDS_NOW)) - start )) s"

clean:
	rm -rf $(VENV) $(PEERS_VENV) $(NETWORKS_VENV) .bench .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
