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
.PHONY: help venv dev slim demo test levels test-fast one test-slow lint workflow unit store cluster images node jobs cluster-up cluster-down cluster-demo crd coverage clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(VENV)/.done ## make .venv with the expunge command

$(VENV)/.uv: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	touch $@

$(VENV)/.done: $(VENV)/.uv pyproject.toml
	$(UV) $(BIN)/python --editable '.[jobs,operator]'
	touch $@

dev: $(VENV)/.dev ## the same with what lint and tests need

$(VENV)/.dev: $(VENV)/.done
	$(UV) $(BIN)/python --group dev
	touch $@

slim: $(SLIM)/.done ## make the environment of docker/controller.Dockerfile: no torch, nothing of the hub

$(SLIM)/.done: $(VENV)/.uv pyproject.toml
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

levels: cluster unit store images node jobs workflow
ifdef SIDE_BY_SIDE
node: | images # both build them
endif

test-fast: lint unit ## what takes a few minutes

T ?= tests/unit
one: dev slim ## one file or test: make one T=tests/unit/test_cli.py::test_name
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(T)

lint: dev ## ruff, mypy, codespell and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/hadolint docker/*.Dockerfile examples/plugin/*.Dockerfile

workflow: dev ## actionlint on the workflow file (built once, with Go)
	"$$($(BIN)/python -m tests.support.toolchain actionlint)" .github/workflows/test.yml

unit: slim ## tests that load no torch, in the environment of the controller's image
	PYTHONPATH=$(TOOLS) $(SLIM)/bin/python -m coverage run -m pytest tests/unit

store: dev ## the same tests on a directory and on a real S3 server (built once, with Go)
	$(BIN)/coverage run -m pytest tests/store

cluster: dev slim ## tests on a real Kubernetes control plane and with helm (built once, with Go: 5 to 15 minutes), S3, a node of processes
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest tests/cluster

images: dev ## build our container images and try them (Linux, root, apt; 5 to 10 minutes once)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(BIN)/python -m pytest tests/images; \
	else \
	  echo "NOT RUN: the images. They are built by root on Debian or Ubuntu: sudo make images" | tee -a $(NOT_RUN); \
	fi

node: dev ## our images in pods of a real node (Linux, root, apt)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/node; \
	else \
	  echo "NOT RUN: the node. It is started by root on Debian or Ubuntu: sudo make node" | tee -a $(NOT_RUN); \
	fi

cluster-demo: dev ## the quickstart in pods of a real cluster with two make-believe GPUs (Linux, root, apt); then end it
	$(BIN)/python -m tests.support.demo

cluster-up: dev ## leave that cluster running and print how to use it (not as root: a control plane alone, until Ctrl-C)
	@if [ "$$(id -u)" = 0 ]; then $(BIN)/python -m tests.support.demo up; else $(BIN)/python -m tests.support.control_plane; fi

cluster-down: dev ## end what cluster-up started
	@$(BIN)/python -m tests.support.demo down

jobs: dev ## tests of the job programs and of whole runs; the unit tests once more, where torch is installed
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest tests/jobs
	$(BIN)/coverage run -m pytest tests/unit
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest tests/run -m 'not slow'

test-slow: dev ## the quickstart on seeds 0 to 4, and killed three times
	$(BIN)/python -m pytest tests/run -m slow

crd: venv ## write the Experiment's definition into the chart, from the experiment's own types
	$(BIN)/python -m expunge_controller.experiment.crd > charts/expunge/files/crd.yaml

coverage: ## branches of both packages that the tests went through: 90 % or more
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

clean: ## remove the environment and caches, not the store
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
