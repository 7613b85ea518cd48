# The two commands: `make demo` (set up, run the main job on the bundled model) and `make test` (set up, pass the tests).
# Everything installs into .venv. PyTorch goes in first from constraints.txt, so that pip takes that exact build;
# TORCH_INDEX may name an index for it (empty: pip's own).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One thread per process in tests: small matrices on many threads are ten times slower.
ONE := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2

.PHONY: demo test test-slow lint types bench bench-quick docs identities frontend pictures clean setup-core setup-all

demo: setup-core
	@$(BIN)/python examples/demo.py

# A quarter of an hour on two quiet cores; what takes longest one by one is left to `make test-slow`, which CI runs too.
test: setup-all lint types
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: setup-all
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --dist load -m slow

lint: setup-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-all
	$(BIN)/pyright

bench: setup-all
	@set -e; for claim in benchmarks/*.py; do echo "== $$claim"; $(ONE) $(BIN)/python $$claim; done

# Claims that are judged by processor time on one thread, or by memory, so that a busy machine does not decide them.
QUICK := product_svd_is_faster_than_dense mlp_svd_is_faster_than_torch help_and_import_are_quick \
	projection_costs_little_more_than_a_product half_precision_screens_exactly decompositions_need_little_memory \
	a_patching_sweep_costs_its_suffixes rollouts_cost_their_steps

bench-quick: setup-all
	@set -e; for claim in $(QUICK); do echo "== $$claim"; $(ONE) $(BIN)/python benchmarks/$$claim.py; done

docs: setup-all
	$(BIN)/python docs/generate.py

# Builds the explorer's page (needs Node; users do not) and compares it with the files in the package.
frontend: setup-core
	cd frontend && npm ci --no-fund --no-audit && npm run check && npm run test && npx vite build --outDir ../build/page
	$(BIN)/python frontend/compare.py build/page

# Takes the pictures of the README from the page itself (needs Chromium).
pictures: setup-all
	$(BIN)/python docs/readme_pictures.py

identities: setup-all
	@$(BIN)/python tests/identities.py

clean:
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache

setup-core: $(VENV)/.core
setup-all: $(VENV)/.all

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (core) …"
	@$(PIP) --constraint constraints.txt --editable '.[app]'
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (everything, with PyTorch: a few minutes) …"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) --constraint constraints.txt --editable '.[all,dev]'
	@touch $@ $(VENV)/.core
