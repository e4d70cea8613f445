# Each target's purpose: `make help`. Needs Python 3.11 or newer and, for the first run of a target, a package index.
# pip's own settings choose the build of PyTorch.

PYTHON ?= python3
WORKERS ?= 2
STEPS ?= 300
BENCHMARKS ?= benchmarks/networks.py

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check $(if $(CI),-q)
# One thread per worker: the tests' networks are small, and workers that share cores slow each other down.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
PYTEST := $(BIN)/pytest -q -rs
PARALLEL := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PYTEST) -n $(WORKERS) --dist loadfile

# Run with a temporary folder of its own, removed afterwards with all that tests and their child processes left in it.
within_temporary = folder=$$(mktemp -d) && { TMPDIR=$$folder $(1); status=$$?; rm -rf "$$folder"; exit $$status; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo space test test-slow test-gpu test-network style quality bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

# $(call install,EXTRA): torch first, so that its one large download is seen as such and happens once.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing diffusers_sde$(1) into $(VENV); the first time takes a few minutes."
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.$(1)'
endef

# torch-fidelity alone: the torchvision that it asks for fits one build of torch only, and the tests need none of it.
define install_fidelity
	@$(PIP) install -c constraints.txt --no-deps torch-fidelity
endef

# A browser for the tests of the Space: there already, or from Debian's packages; without one these tests are skipped.
define install_browser
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the tests of the Space."; \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
			|| echo "Chromium cannot be installed: the browser tests will be skipped."; \
	else echo "No Chromium found: the browser tests will be skipped."; fi
endef

# One stamp per set of extras; a larger set brings the smaller ones.
$(VENV)/.stamp-core: setup.py constraints.txt
	$(call install,)
	@touch $@

$(VENV)/.stamp-test: setup.py constraints.txt
	$(call install,[test])
	$(install_fidelity)
	$(install_browser)
	@touch $(VENV)/.stamp-core $(VENV)/.stamp-space $@

$(VENV)/.stamp-dev: setup.py constraints.txt
	$(call install,[dev])
	$(install_fidelity)
	$(install_browser)
	@touch $(VENV)/.stamp-core $(VENV)/.stamp-space $(VENV)/.stamp-test $@

install: $(VENV)/.stamp-dev  ## the package in .venv, editable, with everything to develop it

demo: $(VENV)/.stamp-core  ## draw a grid of images with the embedded model into demo/
	$(BIN)/diffusers-sde sample --num-images 16 --steps $(STEPS) --seed 0 --output demo --grid
	@echo "The grid: $(CURDIR)/demo/grid.png"

$(VENV)/.stamp-space: setup.py constraints.txt
	$(call install,[demo])
	@touch $(VENV)/.stamp-core $@

space: $(VENV)/.stamp-space  ## the Gradio Space on this machine, with the embedded models
	$(BIN)/python spaces/app.py

test: $(VENV)/.stamp-test  ## the tests, in under 10 minutes on 2 cores
	@$(call within_temporary,$(OFFLINE) $(PARALLEL))

test-slow: $(VENV)/.stamp-test  ## the tests marked slow
	@$(call within_temporary,$(OFFLINE) $(PARALLEL) -m "slow and not gpu and not network")

test-gpu: $(VENV)/.stamp-test  ## the tests marked gpu, on a machine with one
	@$(OFFLINE) $(PYTEST) -m "gpu and not network"

test-network: $(VENV)/.stamp-test  ## the tests marked network, which download from the Hub
	@$(PYTEST) -m "network and not gpu"

style: $(VENV)/.stamp-dev  ## mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(VENV)/.stamp-dev  ## fail on what `make style` would change or cannot mend
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.stamp-core  ## the benchmarks that need no arguments, one table each
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove caches and build leftovers, but neither .venv nor results
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf
