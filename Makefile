# Everything a person types here. Needed: make and Python 3.11 or newer; the rest goes into .venv.
#
#   PYTHON=python3.12      the interpreter .venv is made with (default: the first that is >= 3.11)
#   TORCH=torch==2.13.0    what pip installs as torch, before anything else. The default is the pin
#                          in .ci/constraints.txt: a range would take the newest build and with it
#                          gigabytes of accelerator libraries. On a GPU or NPU machine name the
#                          build that fits it (a version or a wheel file). Which index pip asks is
#                          pip's own setting: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or pip.conf.
#   TORCH_NPU=...          the torch_npu that test-npu fetches into .npu; of the same release as torch
#   WITH='...'             what release-check takes in place of pinned packages
#   ARGS='...'             further options of the command that quickstart, test or test-npu runs
#
# A changed PYTHON or TORCH takes effect after `make clean`.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
CONSTRAINTS := .ci/constraints.txt
# Two processes share the files of tests; `ARGS='-n 0 --pdb'` is one, for a debugger.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
PYTHON ?= python3.11 python3.12 python3.13 python3
TORCH ?= $(shell grep '^torch==' $(CONSTRAINTS))
TORCH_NPU ?= $(shell grep '^torch==' $(CONSTRAINTS) | sed 's/^torch==/torch-npu==/')
WITH ?=
ARGS ?=

# Projects that others train with, and what their tests need.
CLIENTS := 'accelerate>=1.15' 'darts>=0.48' 'hydra-core>=1.3' 'litgpt>=0.5.13' 'pytorch-forecasting>=1.8' \
	'hypothesis>=6.170' 'pytest>=9.2'

# A Python given by name is what release-check is for; else that of .venv.
RELEASE_PYTHON = $(if $(filter command line,$(origin PYTHON)),$(PYTHON),$(BIN)/python)
# Quick ones, which would miss a folder that is not in the archive.
SDIST_TESTS := tests/test_versions.py tests/test_documentation.py tests/functional tests/cli/test_plan.py
# `lightning_root` and the packages that others import from, as in tests/test_documentation.py.
DOCUMENTED := .coefficients .diagnostics .diagnostics.metrics .functional .kernels .npu .optim .partition

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test coverage test-npu test-clients check lint format install build wheel-check \
	release-check docs clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

quickstart: $(VENV)/.run ## train with ROOT on this machine: configs/quickstart.yaml
	$(BIN)/python -m lightning_root fit --config configs/quickstart.yaml $(ARGS)

test: $(VENV)/.dev ## run the tests
	$(PYTEST) $(ARGS)

# Kernels count through Triton's interpreter, and where there is .npu, the emulated NPUs too.
coverage: $(VENV)/.dev ## what of the package no test runs, branches too; fails under 95 %
	$(BIN)/python -m coverage erase
	$(subst -m pytest,-m coverage run -m pytest,$(PYTEST)) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The wheel lies apart from .venv: installed there, it would break every `import torch` without CANN.
test-npu: $(VENV)/.dev .npu/.made ## train on emulated Ascend NPUs: the real torch_npu, no hardware
	$(PYTEST) tests/npu --npu-required $(ARGS)

# Apart, because each brings dozens of packages; skipped where they are missing.
test-clients: .clients/.made ## train in darts, litgpt, pytorch-forecasting and with Hydra, as their users do
	LIGHTNING_ROOT_CLIENTS=required .clients/bin/python -m pytest tests/clients $(ARGS)

check: lint ## lint, types, import directions, then the tests: what CI runs
	$(PYTEST) $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy and import-linter; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## let ruff repair and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.dev ## make .venv with all the tools, and the pre-commit hooks
	$(BIN)/pre-commit install

build: $(VENV)/.dev ## the wheel and the source archive, in dist/
	$(BIN)/python -m build

# An empty environment in a temporary folder, so that only what the wheel declares is there.
wheel-check: $(VENV)/.dev ## install the wheel in an empty environment and train with it
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	$(BIN)/python -m build --wheel --outdir "$$work"; \
	$(BIN)/python -m venv "$$work/venv"; \
	"$$work/venv/bin/python" -m pip install --quiet $(TORCH); \
	"$$work/venv/bin/python" -m pip install --quiet -c $(VENV)/constraints.txt "$$work"/*.whl; \
	smoke="$$PWD/tests/wheel_smoke.py"; cd "$$work"; OMP_NUM_THREADS=1 venv/bin/python "$$smoke"

# The archives are judged, tests are run from the unpacked sdist, and each archive is installed in an
# empty environment. One call is one cell of the matrix of Python and torch; the ends of it are
#
#   make release-check PYTHON=python3.11 TORCH=torch==2.11.0 \
#       WITH='lightning==2.6.4 jsonargparse==4.39.0 torchmetrics==1.6.0 tensorboard==2.18.0 jinja2==3.1.0 numpy==2.0.0'
#   make release-check PYTHON=python3.12 TORCH=torch==2.13.0
#   make release-check PYTHON=python3.13 TORCH='torch<2.16' WITH=lightning
release-check: $(VENV)/.dev ## check wheel and sdist, each in an empty environment
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	$(BIN)/python -m build --outdir "$$work/dist"; \
	$(BIN)/python tests/release_contents.py "$$work/dist"; \
	tar -xzf "$$work"/dist/*.tar.gz -C "$$work"; \
	(cd "$$work"/lightning_root-*; "$(abspath $(BIN))/python" -m pytest -q $(SDIST_TESTS)); \
	grep -v $(foreach package,torch $(WITH),-e '^$(firstword $(subst =, ,$(package)))==') \
		$(CONSTRAINTS) > "$$work/constraints.txt"; \
	for archive in "$$work"/dist/*; do \
		$(RELEASE_PYTHON) -m venv --clear "$$work/venv"; \
		"$$work/venv/bin/python" -m pip install --quiet '$(TORCH)'; \
		"$$work/venv/bin/python" -m pip install --quiet -c "$$work/constraints.txt" "$$archive" \
			$(foreach package,$(WITH),'$(package)'); \
		(smoke="$$PWD/tests/wheel_smoke.py"; cd "$$work"; export OMP_NUM_THREADS=1; \
		venv/bin/python "$$smoke"; venv/bin/lightning-root doctor); \
		echo "$$(basename "$$archive") is sound"; \
	done

docs: $(VENV)/.dev ## the API reference, from the docstrings, in build/docs
	OMP_NUM_THREADS=1 $(BIN)/pdoc --docformat google --output-directory build/docs \
		lightning_root $(addprefix lightning_root,$(DOCUMENTED))
	@echo "build/docs/index.html"

clean: ## remove .venv, caches and build outputs
	rm -rf $(VENV) .npu .clients build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below say what .venv holds; each step runs again only when a file it reads has changed.

$(VENV)/.made:
	@found=; usable=; for candidate in $(PYTHON); do \
		"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		found=$$candidate; \
		"$$candidate" -c 'import ensurepip, venv' 2>/dev/null || continue; \
		usable=$$candidate; break; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No Python 3.11 or newer among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	elif [ -z "$$usable" ]; then \
		echo "$$found has no venv module (Debian and Ubuntu: the package python3-venv). Install it, or name another Python: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$usable --version) ($$usable)"; \
	"$$usable" -m venv $(VENV)
	@touch $@

# torch first and alone; then it is held at the very version that came, whatever that is.
$(VENV)/.torch: $(VENV)/.made
	$(PIP) install $(TORCH)
	@touch $@

$(VENV)/constraints.txt: $(VENV)/.torch $(CONSTRAINTS)
	@grep -v '^torch==' $(CONSTRAINTS) > $@
	@$(PIP) list --format=freeze | grep '^torch==' >> $@

$(VENV)/.run: $(VENV)/constraints.txt pyproject.toml
	$(PIP) install -e . -c $(VENV)/constraints.txt
	@touch $@

# The tools include what running needs, so .run is up to date too.
$(VENV)/.dev: $(VENV)/constraints.txt pyproject.toml
	$(PIP) install -e '.[dev,examples,plot,zoo,eval]' -c $(VENV)/constraints.txt
	@touch $(VENV)/.run $@

.clients/.made: $(VENV)/.made pyproject.toml Makefile
	$(BIN)/python -m venv --clear .clients
	.clients/bin/python -m pip install --quiet $(TORCH)
	.clients/bin/python -m pip install --quiet $(CLIENTS) '$(TORCH)'
	.clients/bin/python -m pip install --quiet -e .
	@touch $@

.npu/.made: $(VENV)/.made $(CONSTRAINTS)
	rm -rf .npu
	$(PIP) install --no-deps --target .npu $(TORCH_NPU)
	@touch $@
