# Set-up, Table 1, ablations, tests and notebooks; `make help` lists the targets and variables.
SHELL := /bin/bash
PROFILE ?= small
RESULTS ?=
SEEDS ?=
METHODS ?=
JOBS ?=
SET ?=
PLUGIN ?=
ONLY ?=
PYTHON ?= python3

# An active virtual environment, or one of conda other than its base, is used as it is; otherwise .venv is made.
CONDA := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
ENVIRONMENT := $(or $(VIRTUAL_ENV),$(CONDA),$(CURDIR)/.venv)
BIN := $(ENVIRONMENT)/bin
INSTALLED := $(ENVIRONMENT)/.mst-replication-installed
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto

# A path as it is from any folder; without a path the second argument.
absolute = $(if $(1),$$($(BIN)/python -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$(1)"),$(2))

.PHONY: help install replicate-table1 compare replicate-ablations report tune lint test test-all notebooks pages bench gpu-check clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 28
	@echo 'Variables: PROFILE=smoke|small|text|paper, SEEDS=0,1 (default: as the profile says), METHODS=dense,mst (default: all), JOBS=runs at a time (default: one a core), RESULTS=folder (default: results), SET="key=value …", PLUGIN=modules'

install: $(INSTALLED) ## the environment, made only when it must be

# What commands that train many runs have in common.
RUNS = --profile "$(PROFILE)" --methods "$(METHODS)" $(if $(JOBS),--jobs $(JOBS)) $(if $(RESULTS),--results "$(RESULTS)") \
	$(foreach module,$(PLUGIN),--plugin $(module)) $(foreach pair,$(SET),--set $(pair))
REPLICATE = $(BIN)/python -m replication replicate --seeds "$(SEEDS)" $(RUNS)

replicate-table1: $(INSTALLED) ## train and score every arm, then print Table 1 and the verdicts
	@$(REPLICATE)

compare: $(INSTALLED) ## what of your runs of PROFILE is worse than of ours, and what better; fails where a loss, score or FLOP count is
	@$(BIN)/python -m replication compare "results/reference/$(PROFILE)" "$(or $(RESULTS),results)/$(PROFILE)" --fail-on worse-result

replicate-ablations: $(INSTALLED) ## the same with the ablation arms, and print their table
	@$(REPLICATE) --ablations

report: $(INSTALLED) ## one page for a browser, report.html, of your runs of PROFILE, or of ours until yours are complete
	@$(BIN)/python -m replication report --profile "$(PROFILE)" $(if $(RESULTS),--results "$(RESULTS)")

tune: $(INSTALLED) ## find each arm's learning rate, drop fraction and update interval again (small: over an hour)
	@$(BIN)/python -m replication tune $(if $(SEEDS),--seeds "$(SEEDS)") $(RUNS)

lint: $(INSTALLED) ## the code's form and types: ruff at 120 columns, mypy on the public surface
	@$(BIN)/python -m ruff format --check . && $(BIN)/python -m ruff check . && $(BIN)/python -m mypy

test: $(INSTALLED) ## the tests that take seconds, under 5 minutes in all
	@$(PYTEST) -m "not slow"

test-all: $(INSTALLED) ## every test
	@$(PYTEST)

notebooks: $(INSTALLED) ## execute the notebooks on your runs of PROFILE, or on ours until yours are complete
	@PROFILE="$(call absolute,$(filter %.yaml,$(PROFILE)),$(PROFILE))" RESULTS="$(call absolute,$(RESULTS))" $(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

pages: $(INSTALLED) ## the notebooks as pages for a browser, code folded: build/notebooks/*.html
	@$(BIN)/python -m jupyter nbconvert --to html --no-prompt --template page --TemplateExporter.extra_template_basedirs=notebooks --output-dir build/notebooks notebooks/*.ipynb

bench: $(INSTALLED) ## measure what sparsity saves on this machine's clock (over an hour; ONLY=layers,steps,runs,densities,profile,metrics)
	@$(BIN)/python -m replication bench --only "$(ONLY)" $(if $(RESULTS),--out "$(RESULTS)/bench")

gpu-check: $(INSTALLED) ## on a machine with a GPU: the tests that need one, and what is measured there (under 8 minutes; ONLY=tests,steps,attention,blocks)
	@$(BIN)/python -m replication gpu-check --only "$(ONLY)" $(if $(RESULTS),--out "$(RESULTS)/bench")

clean: ## remove .venv, prepared data, checkpoints and smoke runs; logged results stay
	rm -rf .venv data results/smoke *.egg-info .pytest_cache build replication/kernels/*.so
	rm -rf results/*/*/seed-*/checkpoint results/*/*/seed-*/resume results/*/*/seed-*/at/*/model.safetensors results/*/tuning
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(wildcard replication/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version); allowed: Python 3.11 or newer (make PYTHON=python3.12)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(ENVIRONMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,notebooks]'
	@touch $@
