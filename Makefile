# What you can do here. Needs Python 3.11 or newer and make; everything else comes with `setup`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export GRPC_VERBOSITY ?= ERROR

.DEFAULT_GOAL := help
.PHONY: help demo test check setup servers generate check-generate breaking lint types imports bench soak chaos lock clean

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## Run the main job: a census of the Python standard library.
	$(BIN)/python examples/census/demo.py

test: setup servers check ## Run every test on real servers, and all checks.
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup lint types imports check-generate ## Run every check that needs no server.

setup: $(VENV)/.ready ## Make the virtual environment with everything in it.

$(VENV)/.ready: requirements.lock pyproject.toml sdk/python/pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps -e sdk/python -e .
	touch $@

servers: setup ## Fetch what tests need and no Python package brings (etcd; Debian packages for the rigs).
	sh tools/fetch_etcd.sh
	sh tools/install_rigs.sh

generate: setup ## Generate the stubs from proto/.
	buf generate
	touch sdk/python/magicflow/v1/__init__.py
	sh engine/snapshots/etcd/generate.sh $(BIN)/python

check-generate: setup ## Fail if the committed stubs differ from proto/.
	$(BIN)/python tools/check_generated.py

breaking: setup ## Compare the contracts with the last release.
	$(BIN)/python tools/check_breaking.py

lint: setup ## Style of Python and protos.
	ruff check .
	ruff format --check .
	buf lint
	$(MAKE) --no-print-directory breaking

types: setup ## Types of the engine, the services, the command line and the SDK.
	mypy

imports: setup ## Who may import whom.
	lint-imports

bench: setup ## Measure; see benchmarks/README.md.
	$(BIN)/python -m benchmarks.run

soak: setup ## Simulate many clusters under faults: make soak SEEDS=100000 FROM=0.
	$(BIN)/python -m tests.simulation.soak $(or $(SEEDS),20000) $(or $(FROM),0)

chaos: setup servers ## Attack real processes: make chaos ROUNDS=50 SECONDS=600 SEED=7 FAULTS=kill-nats,kill-etcd.
	$(BIN)/python -m tests.system.chaos ROUNDS=$(ROUNDS) SECONDS=$(SECONDS) SEED=$(SEED) FAULTS=$(FAULTS) TRACES=$(TRACES) REPORT=$(REPORT)

lock: ## Pin all dependencies anew into requirements.lock.
	uv lock --quiet --upgrade
	uv export --quiet --frozen --all-packages --all-groups --no-emit-workspace --no-header --no-annotate --output-file requirements.lock
	rm -f uv.lock

clean: ## Remove what was made.
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis
