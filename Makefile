# Every target sets up what it needs: a fresh clone takes Python 3.11 or newer and make.
#
#   PYTHON   the interpreter to build the virtual environment with. Default: the first one found that is new enough.
#   VENV     where the virtual environment lies. Empty: PYTHON is used as it is, with the packages that it already has.
#   MINUTES  how long `make soak` looks at memory, and `make fuzz` runs each of its tests. Default: 10.
#   ARGS     added to the command that the target runs, as in `make test ARGS="-k store -x"`.

VENV ?= .venv
MINUTES ?= 10
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
endif

ifeq ($(VENV),)
BIN :=
PY := $(PYTHON)
RUNTIME :=
DEV :=
BENCH :=
MUTATION :=
export PYTHONPATH := $(CURDIR):$(CURDIR)/proto:$(PYTHONPATH)
else
BIN := $(VENV)/bin/
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
MUTATION := $(VENV)/.mutation
endif

PROTOS := $(wildcard proto/kaas/v1/*.proto)
WORKER_PROTOS := $(wildcard proto/kaas/worker/v1/*.proto)
GENERATED ?= proto
RAY_OLDEST := $(CURDIR)/build/ray-oldest

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-ray-oldest test-gpu soak fuzz mutation bench bench-gpu format lint type generate stubs check-generated proto-lint ptx clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done

venv: $(DEV) ## Build the virtual environment with all that development needs

demo: $(RUNTIME) ## Start a daemon, run real requests on what this machine has, and check them against NumPy
	@$(PY) -m examples.demo $(ARGS)

# Tests start some thousand processes: each would compile every file that it imports where the environment lets none keep that.
test: export PYTHONDONTWRITEBYTECODE =
test: $(DEV) ## Run the tests, in two processes; no GPU is needed. In one, as a debugger wants it: ARGS=-n0
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

test-ray-oldest: $(DEV) ## Run the tests of Ray with the oldest Ray that is supported
	@test -d $(RAY_OLDEST) || $(PY) -m pip install --quiet --target $(RAY_OLDEST) --no-deps 'ray == 2.55.*'
	@PYTHONPATH=$(RAY_OLDEST):$(PYTHONPATH) $(PY) -m pytest tests/ray $(ARGS)

test-gpu: $(DEV) ## Run the tests that need a CUDA GPU
	@$(PY) -m pytest -m gpu $(ARGS)

soak: $(DEV) ## See for MINUTES whether memory stays flat, kill 600 workers, spares and daemons, and put the store through 1000 sequences
	@$(PY) -m tests.faults.soak --minutes $(MINUTES)
	@$(PY) -m pytest tests/faults/test_kills.py tests/store/test_model.py --kills 200 --sequences 1000 --timeout 0 $(ARGS)

fuzz: $(DEV) ## Send messages and libraries with something in them changed to a daemon, for MINUTES each, as in MINUTES=60
	@$(PY) -m pytest -s tests/faults/test_mutated_inputs.py --fuzz-minutes $(MINUTES) --timeout 0 $(ARGS)

mutation: $(MUTATION) ## Change the code at random places and list the changes that no test notices, as in ARGS="--sample 50 --jobs 4"
	@$(PY) -m tests.mutation $(ARGS)

bench: $(RUNTIME) ## Measure a warm request's latency beside an empty gRPC echo's, on the emulated device
	@$(PY) -m benchmarks --device emulator $(ARGS)

bench-gpu: $(BENCH) ## Measure everything beside its alternatives on the first CUDA GPU, as in ARGS="--quick --only dot,jacobi"
	@$(PY) -m benchmarks --device cuda:0 $(ARGS)

format: $(DEV) ## Format the code and fix what can be fixed
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

lint: $(DEV) ## Check style
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

type: $(DEV) ## Check types
	@$(PY) -m mypy

generate: stubs ## Generate the Python stubs from the .proto files, and the client for threads from the one for asyncio
	@$(PY) scripts/unasync.py

stubs: $(DEV)
	@$(PY) -m grpc_tools.protoc -Iproto --python_out=$(GENERATED) --pyi_out=$(GENERATED) --grpc_python_out=$(GENERATED) $(PROTOS)
	@$(PY) -m grpc_tools.protoc -Iproto --python_out=$(GENERATED) --pyi_out=$(GENERATED) $(WORKER_PROTOS)

check-generated: $(DEV) ## Check that what is committed is what `make generate` makes
	@$(PY) scripts/unasync.py --check && echo "the client for threads is current"
	@fresh=$$(mktemp -d) && trap 'rm -r "$$fresh"' EXIT && $(MAKE) --no-print-directory stubs GENERATED="$$fresh" && \
		diff -r -x '*.proto' -x __init__.py -x __pycache__ -x py.typed "$$fresh/kaas" proto/kaas && echo "stubs are current"

proto-lint: $(DEV) ## Check the .proto files
	@$(BIN)buf lint
	@$(BIN)buf format --diff --exit-code

ptx: ## Rebuild the PTX that is committed beside its CUDA C++ sources (needs nvcc)
	@$(MAKE) --no-print-directory -B -C examples/kernels
	@$(MAKE) --no-print-directory -B -C kaasd/devices/cuda -f $(CURDIR)/examples/kernels/Makefile
	@$(MAKE) --no-print-directory -B -C tests/corpus/cuda
	@$(MAKE) --no-print-directory -B -C tests/conformance/data variables.ptx heap.ptx launches.ptx warpgroup.ptx
	@$(MAKE) --no-print-directory -B -C benchmarks/kernels -f $(CURDIR)/examples/kernels/Makefile

clean: ## Remove the virtual environment and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/node/node_modules tests/types/node_modules
	find . -name __pycache__ -prune -exec rm -r {} +

ifneq ($(VENV),)
# Setuptools warns of every editable installation; that is no news to who reads this.
INSTALL := PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --disable-pip-version-check --editable

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer was found; name one with PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer; name one with PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot build a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Building the virtual environment $(VENV) with $(PYTHON) ..." >&2
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "Installing kaasd and what it needs ..." >&2
	@$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.bench: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "Installing kaasd and what its benchmarks need ..." >&2
	@$(INSTALL) '.[bench]'
	@touch $@

$(VENV)/.mutation: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "Installing kaasd and what mutation testing needs ..." >&2
	@$(INSTALL) '.[demo,dev,nvrtc,mutation]'
	@touch $@ $(VENV)/.runtime $(VENV)/.dev

$(VENV)/.dev: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "Installing kaasd and what its development needs ..." >&2
	@$(INSTALL) '.[demo,dev,nvrtc]'
	@touch $@ $(VENV)/.runtime
endif
