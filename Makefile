# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOT_RUN := $(VENV)/not-run
SLIM := $(VENV)/slim
TOOLS := $(SLIM)/test-tools
UV = $(BIN)/uv pip install --quiet --constraint constraints.txt --python
export UV_CACHE_DIR ?= $(HOME)/.cache/expunge/uv

.DEFAULT_GOAL := help
.PHONY: help venv dev slim demo test levels test-fast test-slow lint unit store cluster images node jobs cluster-up cluster-down cluster-demo crd coverage clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(VENV)/.done ## make .venv with the expunge command

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) $(BIN)/python --editable '.[jobs,operator]'
	touch $@

dev: $(VENV)/.dev ## the same with what lint and tests need

$(VENV)/.dev: $(VENV)/.done
	$(UV) $(BIN)/python --group dev
	touch $@

slim: $(SLIM)/.done ## make the environment of docker/controller.Dockerfile: no torch, nothing of the hub

$(SLIM)/.done: $(VENV)/.dev
	$(PYTHON) -m venv $(SLIM)
	$(UV) $(SLIM)/bin/python --editable '.[operator]' 'coverage>=7.10,<8'
	$(UV) $(SLIM)/bin/python --target $(TOOLS) --group test # beside it, so that the operator cannot import them
	touch $@

demo: venv ## run examples/quickstart.yaml to its table of scores
	$(BIN)/expunge run examples/quickstart.yaml

test: lint ## pass every test: two levels at a time, since most of them wait for others' processes
	@echo "Two levels at a time; what a level says is shown when it ends. One alone: make unit"
	@rm -f $(NOT_RUN)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target SIDE_BY_SIDE=1 levels
	@$(MAKE) --no-print-directory coverage
	@if [ -s $(NOT_RUN) ]; then cat $(NOT_RUN); [ -z "$(ALL_LEVELS)" ]; fi

levels: cluster unit store images node jobs
ifdef SIDE_BY_SIDE
node: | images # both build them
endif

test-fast: lint unit ## what needs no torch

lint: dev ## ruff, mypy and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile

unit: dev slim ## tests that load no torch; once more in the controller's own environment
	$(BIN)/coverage run -m pytest tests/unit --at-least 837
	PYTHONPATH=$(TOOLS) $(SLIM)/bin/python -m pytest tests/unit --at-least 837

store: dev ## the same tests on a directory and on a real S3 server (built once, with Go)
	$(BIN)/coverage run -m pytest tests/store --at-least 210

cluster: dev slim ## tests on a real Kubernetes control plane and with helm (built once, with Go: 5 to 15 minutes), S3, a node of processes
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest tests/cluster --at-least 131

images: dev ## build our container images and try them (Linux, root, apt; 5 to 10 minutes once)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(BIN)/python -m pytest tests/images --at-least 6; \
	else \
	  echo "NOT RUN: the images. They are built by root on Debian or Ubuntu: sudo make images" | tee -a $(NOT_RUN); \
	fi

node: dev ## our images in pods of a real node (Linux, root, apt)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/node --at-least 13; \
	else \
	  echo "NOT RUN: the node. It is started by root on Debian or Ubuntu: sudo make node" | tee -a $(NOT_RUN); \
	fi

cluster-demo: dev ## the quickstart in pods of a real cluster with two make-believe GPUs (Linux, root, apt); then end it
	$(BIN)/python tests/support/demo.py

cluster-up: dev ## leave that cluster running and print how to use it (not as root: a control plane alone, until Ctrl-C)
	@if [ "$$(id -u)" = 0 ]; then $(BIN)/python tests/support/demo.py up; else $(BIN)/python tests/support/cluster.py; fi

cluster-down: dev ## end what cluster-up started
	@$(BIN)/python tests/support/demo.py down

jobs: dev ## tests of the job programs and of whole runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/jobs --at-least 360
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest tests/run -m 'not slow' --at-least 29

test-slow: dev ## the quickstart on seeds 0 to 4, and killed three times
	$(BIN)/python -m pytest tests/run -m slow

crd: venv ## write the Experiment's definition into the chart, from the experiment's own types
	$(BIN)/python -m expunge_controller.experiment.crd > charts/expunge/files/crd.yaml

coverage: ## branches of the controller that the tests went through: 90 % or more
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

clean: ## remove the environment and caches, not the store
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
