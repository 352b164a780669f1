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

# As they were given: data, which neither make nor the shell reads as its own text.
VARIABLES := PROFILE RESULTS SEEDS METHODS JOBS SET PLUGIN ONLY PYTHON VIRTUAL_ENV
$(foreach name,$(VARIABLES),$(eval override $(name) := $$(value $(name))))
export $(filter-out VIRTUAL_ENV,$(VARIABLES))
unknown := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(if $(unknown),$(error $(unknown) is no variable of this Makefile; allowed: $(filter-out VIRTUAL_ENV,$(VARIABLES))))

# An active virtual environment, or one of conda other than its base, is used as it is; otherwise .venv is made.
CONDA := $(if $(filter-out base,$(value CONDA_DEFAULT_ENV)),$(value CONDA_PREFIX))
export ENVIRONMENT := $(or $(VIRTUAL_ENV),$(CONDA),.venv)
RUN := "$$ENVIRONMENT/bin/python" -m
KERNELS := replication/kernels/*.c replication/kernels/*.inc
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -q --numprocesses auto

.PHONY: help install replicate-table1 compare replicate-ablations report tune lint test test-all notebooks pages bench gpu-check clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 28
	@echo 'Variables: PROFILE=smoke|small|text|paper, SEEDS=0,1 (default: as the profile says), METHODS=dense,mst (default: all), JOBS=runs at a time (default: one a core, or as `plan machine` found), RESULTS=folder (default: results), SET="key=value …", PLUGIN=modules'

install: ## the environment, made only when it must be
	@stamp="$$ENVIRONMENT/.mst-replication-installed"; stale=; \
	for source in pyproject.toml $(KERNELS); do [ "$$stamp" -nt "$$source" ] || stale=yes; done; \
	[ "$$stale" ] || exit 0; \
	"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$PYTHON is $$("$$PYTHON" --version); allowed: Python 3.11 or newer (make PYTHON=python3.12)"; exit 2; }; \
	[ -x "$$ENVIRONMENT/bin/python" ] || "$$PYTHON" -m venv "$$ENVIRONMENT" || exit; \
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[test,notebooks,dev]' && touch "$$stamp"

# What commands that train many runs have in common: their options, as the shell's own arguments.
RUNS = set -f; for module in $$PLUGIN; do set -- "$$@" --plugin "$$module"; done; \
	set -- --profile "$$PROFILE" --methods "$$METHODS" $${SEEDS:+--seeds "$$SEEDS"} $${JOBS:+--jobs "$$JOBS"} $${RESULTS:+--results "$$RESULTS"} "$$@"; \
	export REPLICATION_SET="$$SET"; $(RUN) replication

replicate-table1: install ## train and score every arm, then print Table 1 and the verdicts
	@$(RUNS) replicate "$$@"

compare: install ## what of your runs of PROFILE is worse than of ours, and what better; fails where a loss, score or FLOP count is
	@$(RUN) replication compare "results/reference/$$PROFILE" "$${RESULTS:-results}/$$PROFILE" --fail-on worse-result

replicate-ablations: install ## the same with the ablation arms, and print their table
	@$(RUNS) replicate --ablations "$$@"

report: install ## one page for a browser, report.html, of your runs of PROFILE, or of ours until yours are complete
	@$(RUN) replication report --profile "$$PROFILE" $${RESULTS:+--results "$$RESULTS"}

tune: install ## find each arm's learning rate, drop fraction and update interval again (small: over an hour)
	@$(RUNS) search tune "$$@"

lint: install ## the code's form and types: ruff and clang-format at 120 columns, mypy on the public surface, no warning in C
	@$(RUN) ruff format --check . && $(RUN) ruff check . && $(RUN) mypy
	@rm -rf build/imports && mkdir -p build/imports && cp -R replication build/imports/ && cp -R baselines eval build/imports/replication/ && \
	tools="$$(cd "$$ENVIRONMENT/bin" && pwd)" && cd build/imports && "$$tools/lint-imports" --no-cache --config ../../pyproject.toml
	@"$$ENVIRONMENT/bin/clang-format" --dry-run --Werror $(KERNELS)
	@compiler="$$(command -v "$${CC:-cc}")" || { echo 'no C compiler: whether it warns of the kernels is not checked'; exit 0; }; \
	"$$compiler" -Wall -Wextra -Werror -Wno-psabi -O3 -fopenmp -c replication/kernels/sparse.c -o /dev/null

test: install ## the tests that take seconds, under 5 minutes in all
	@$(PYTEST) -m "not slow"

test-all: install ## every test, and those of make test as on each lesser processor (hours)
	@$(PYTEST)
	@"$$ENVIRONMENT/bin/python" scripts/at_each_level.py $(SHELL) -c '$(PYTEST) -m "not slow"'

notebooks: install ## execute the notebooks on your runs of PROFILE, or on ours until yours are complete: build/notebooks/*.ipynb
	@case "$$PROFILE" in *.yaml|*.yml) PROFILE="$$(realpath -- "$$PROFILE")";; esac; \
	RESULTS="$${RESULTS:+$$(realpath -m -- "$$RESULTS")}"; $(RUN) jupyter nbconvert --to notebook --execute --output-dir build/notebooks --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

pages: install ## the notebooks as pages for a browser, as last executed, or else as committed: build/notebooks/*.html
	@set -- build/notebooks/*.ipynb; [ -e "$$1" ] || set -- notebooks/*.ipynb; \
	$(RUN) jupyter nbconvert --to html --no-prompt --template page --TemplateExporter.extra_template_basedirs=notebooks --output-dir build/notebooks "$$@"

bench: install ## measure what sparsity saves on this machine's clock (over an hour; goes on where it was interrupted; ONLY=layers,steps,runs,…)
	@$(RUN) replication bench --only "$$ONLY" $${RESULTS:+--out "$$RESULTS/bench"}

gpu-check: install ## on a machine with a GPU: the tests that need one, and what is measured there (under 8 minutes; ONLY=tests,steps,attention,blocks)
	@$(RUN) replication bench gpu --only "$$ONLY" $${RESULTS:+--out "$$RESULTS/bench"}

clean: ## remove .venv, prepared data, smoke runs and checkpoints of finished runs; logged results stay, and what is linked
	rm -rf .venv data *.egg-info .pytest_cache build replication/kernels/*.so
	[ ! -d results ] || find results -mindepth 1 -maxdepth 1 -name smoke -exec rm -rf {} +
	[ ! -d results ] || find results -type d -path '*/seed-*/checkpoint' -prune -exec rm -rf {} +
	[ ! -d results ] || find results -type f -path '*/seed-*/at/*/model.safetensors' -delete
	find . -path ./results -prune -o -name __pycache__ -prune -exec rm -rf {} +
