# Run `make` for the list of targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
JOBS := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
# Extra Hydra overrides, for example: make train ARGS="data.target=gap seed=1"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup accel train test test-slow test-gpu lint type bench bench-kernels bench-scaling bench-roofline docs notebooks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.setup-done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Compiled against the torch that is installed, hence without isolation; prebuilt wheels are
# taken where pip finds them (PIP_FIND_LINKS).
$(VENV)/.accel-done: $(VENV)/.setup-done
	$(PIP) install setuptools wheel
	MAX_JOBS=$(JOBS) $(PIP) install -c constraints.txt --no-build-isolation torch_scatter torch_cluster
	@touch $@

setup: $(VENV)/.setup-done ## create .venv and install the package, editable, with the tested versions

accel: $(VENV)/.accel-done ## add torch_scatter and torch_cluster (prebuilt where pip finds them, else compiled)

train: setup ## train on QM9: the full recipe with a GPU, the 12-minute one without
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		echo "GPU found: the full recipe, +experiment=qm9_homo"; \
		exec $(BIN)/python train.py +experiment=qm9_homo $(ARGS); \
	else \
		echo "No GPU: the small model, +experiment=qm9_homo_quick (about 12 minutes on 2 cores)"; \
		exec $(BIN)/python train.py +experiment=qm9_homo_quick $(ARGS); \
	fi

test: setup ## run the tests (minutes; needs neither GPU nor network)
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup ## run the tests that take minutes: hosts and processes that fail
	$(BIN)/python -m pytest -m slow

test-gpu: setup ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: setup ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## check types
	$(BIN)/mypy

bench: setup ## speed and peak memory on QM9 against other formulations (ARGS=--quick: minutes)
	$(BIN)/python -m benchmarks.qm9_step $(ARGS)

bench-kernels: setup ## the kernels' table: model and lone layers against NVIDIA's formulation
	$(BIN)/python -m benchmarks.kernels $(ARGS)

bench-scaling: setup ## time and memory over batch size, degree, channels and neighbours
	$(BIN)/python -m benchmarks.scaling $(ARGS)

bench-roofline: setup ## operations and bytes of a step against the limits of this machine
	$(BIN)/python -m benchmarks.roofline $(ARGS)

docs: setup ## build the documentation into site/
	$(PIP) install -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

notebooks: setup ## run every notebook from top to bottom, into build/notebooks
	$(PIP) install -c constraints.txt -e '.[notebooks]'
	$(BIN)/jupyter nbconvert --to notebook --execute --output-dir build/notebooks notebooks/*.ipynb

clean: ## remove caches and build products (never data or runs)
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
