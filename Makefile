# make demo: train a sparse model and its dense twin on real images.  make test: build and pass the tests.
# Both start from nothing but Python >= 3.10 and a C++17 compiler, and keep what they install in .venv/. WORKERS: processes that test side by side.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OPS    ?= linear train
WORKERS ?= 2
TORCH  ?= torch==2.13.0
NATIVE  = $(VENV)/.native
SYSTEM_PATH := $(PATH)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test lint build bench gpu gpu-bench gpu-sanitize clean

demo: $(NATIVE)
	$(BIN)/acdc-kernels train --preset demo --out runs/demo $(if $(wildcard runs/demo/config.json),--resume)

test: $(NATIVE)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

build: $(NATIVE)

bench: $(NATIVE)
	$(BIN)/acdc-kernels bench topk
	$(BIN)/acdc-kernels bench update
	$(BIN)/acdc-kernels bench linear
	$(BIN)/acdc-kernels bench train

# On a machine with an NVIDIA GPU: its own python3 with torch, nvcc and cmake, no network, nine minutes at most, no .venv/.
gpu gpu-bench gpu-sanitize: export PATH := $(SYSTEM_PATH)

gpu:
	PYTHON=$(PYTHON) .ci/gpu

gpu-bench:
	PYTHON=$(PYTHON) .ci/gpu bench $(OPS)

gpu-sanitize:
	PYTHON=$(PYTHON) .ci/gpu sanitize

# torch first and pinned, so that nothing else chooses one. Where the default index has a CUDA build only and you want a CPU one,
# point PIP_INDEX_URL or PIP_EXTRA_INDEX_URL at an index that has it.
$(VENV)/.tools: requirements-dev.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(NATIVE): $(VENV)/.tools setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info acdc_kernels/*.so .pytest_cache .ruff_cache
