# Set-up and the usual commands. Needed: Python 3.11 with pip and venv, git, GNU make.
#
# All paths are relative and every tool runs as `.venv/bin/python -m tool`: the folder may hold spaces and may be
# moved. Where pip fetches from (index, mirror, proxy) is your own configuration; nothing here changes it.

.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3.11
VENV_PYTHON := .venv/bin/python
# exec: a shell in between would die of SIGTERM alone and leave the notebooks running.
PIPELINE := exec $(VENV_PYTHON) -m lib.pipeline
DATA_ROOT ?=
RUN ?=
SWEEP ?= notebooks/params/sweep_demo.yaml
SET ?=
ARGS ?=
IMAGES ?=
PROMPTS ?=
OUT ?=
export DATA_ROOT RUN IMAGES PROMPTS OUT

# An active conda or virtual environment, or pip settings that send packages elsewhere, must not leak into .venv.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_CONSTRAINT PIP_REQUIREMENT PIP_EDITABLE PIP_UPGRADE PIP_DRY_RUN
unexport PIP_NO_DEPS PIP_IGNORE_INSTALLED PIP_REPORT PIP_REQUIRE_HASHES PIP_BUILD_CONSTRAINT __PYVENV_LAUNCHER__
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export JUPYTER_PREFER_ENV_PATH := 1

# Written last and holding the folder's path: an interrupted installation or a moved folder is installed again.
INSTALLED := .venv/.installed
ifneq ($(shell test -x $(VENV_PYTHON) && cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

.PHONY: install
install: $(INSTALLED) ## create .venv with everything in it (the other commands do it when needed)

$(INSTALLED): constraints.txt pyproject.toml
	@if test -e .venv/.unfinished || ! $(VENV_PYTHON) -m pip --version >/dev/null 2>&1 \
	    || ! $(VENV_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  for python in "$(PYTHON)" python3.11 python3 python /usr/bin/python3.11 /usr/local/bin/python3.11 none; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; \
	    then break; fi; \
	  done; \
	  if test "$$python" = none; then \
	    echo "No Python 3.11 with pip and venv was found. Install it (Debian, Ubuntu: python3.11-venv) or name it:" \
	      "make PYTHON=/path/to/python3.11" >&2; \
	    exit 2; \
	  fi; \
	  echo "Creating .venv with $$python"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@rm -f $(INSTALLED)
	@pwd -P > .venv/.unfinished
	$(VENV_PYTHON) -m pip install --quiet -c constraints.txt setuptools
	$(VENV_PYTHON) -m pip install -c constraints.txt --no-build-isolation -e ".[notebooks,dev]"
	@mv .venv/.unfinished $(INSTALLED)

.PHONY: demo
demo: $(INSTALLED) ## train, evaluate and explain on procedural data (offline, CPU)
	$(PIPELINE) notebooks/params/demo.yaml $(SET:%=--set %)
	@echo; echo "Next, as for a folder of your own images:"
	@echo "  make score IMAGES=data/demo/raw/test/images PROMPTS=data/demo/prepared/test/manifest.parquet"

.PHONY: sweep
sweep: $(INSTALLED) ## train, evaluate and compare the rows of a table: make sweep [SWEEP=notebooks/params/mine.yaml]
	$(PIPELINE) "$(SWEEP)" $(SET:%=--set %)

.PHONY: full lora
full: $(INSTALLED) ## full fine-tuning on the challenge's data: make full DATA_ROOT=/path [SET="batch_size=2"]
lora: $(INSTALLED) ## LoRA on the challenge's data: make lora DATA_ROOT=/path
full lora:
	@test -d "$$DATA_ROOT" || { echo "Say where the data is: make $@ DATA_ROOT=/folder/with/train/val/test" \
	  "(given: '$$DATA_ROOT')" >&2; exit 2; }
	$(PIPELINE) notebooks/params/$@.yaml --set "data_root=$$DATA_ROOT" $(SET:%=--set %)

.PHONY: evaluate
evaluate: $(INSTALLED) ## figures and error analysis of a trained run: make evaluate RUN=florence2_full
	@test -n "$$RUN" || { echo "Say which run: make evaluate RUN=name (a folder in runs/)" >&2; exit 2; }
	$(PIPELINE) notebooks/params/evaluate.yaml --fresh --set "experiment_name=$$RUN" $(SET:%=--set %)

FILE ?=
export FILE

.PHONY: import-reference
import-reference: $(INSTALLED) ## a last.pth of the published solution as a run: make import-reference FILE=last.pth RUN=theirs
	@test -n "$$FILE" && test -n "$$RUN" || { echo "Say which file and the run's name: make import-reference" \
	  "FILE=last.pth RUN=theirs" >&2; exit 2; }
	$(VENV_PYTHON) -m lib.import_reference "$$FILE" "$$RUN" $(SET)

.PHONY: score
score: $(INSTALLED) ## score a folder: make score IMAGES=/folder [RUN=demo_full] [PROMPTS=prompts.csv] [OUT=folder]
	@test -d "$$IMAGES" || { echo "Say where the images are: make score IMAGES=/folder (given: '$$IMAGES')" >&2; exit 2; }
	@run="$${RUN:-demo_full}"; images=$$(cd "$$IMAGES" && pwd -P); \
	  name=$$(printf %s "$${images#/}" | tail -c 60 | tr -c 'A-Za-z0-9.+-' _); out="$${OUT:-runs/scores/$${run}_$$name}"; \
	  $(PIPELINE) notebooks/params/score.yaml --fresh --set "log=score_$$name" --set "run=runs/$$run" \
	  --set "images=$$images" --set "prompts=$$PROMPTS" --set "out=$$out" $(SET:%=--set %)

.PHONY: lab
lab: $(INSTALLED) ## JupyterLab on this machine only (127.0.0.1, with a token)
	$(VENV_PYTHON) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. \
	  $$(test "$$(id -u)" != 0 || echo --allow-root) $(ARGS) # in a container one is often root

.PHONY: doctor
doctor: ## what is missing here and how to mend it (ARGS=notebooks/params/florence2_full.yaml: for that run)
	@test -x $(VENV_PYTHON) || { echo "There is no .venv yet. Run: make install" >&2; exit 1; }
	@$(VENV_PYTHON) -m lib.doctor $(ARGS)

.PHONY: test test-ci test-slow
test: $(INSTALLED) ## the tests (about ten minutes; ARGS="-k pipeline" chooses)
	$(VENV_PYTHON) -m pytest -q -n 2 -m "not slow and not alone" $(ARGS) || test $$? = 5 # 5: none is chosen
	$(VENV_PYTHON) -m pytest -q -m "not slow and alone" $(ARGS) || test $$? = 5

test-ci: $(INSTALLED) ## those of the slow tests that CI runs: the demo at a reduced size, stopped and resumed runs
	$(VENV_PYTHON) -m pytest -q -n 2 -m "slow and ci" $(ARGS) || test $$? = 5

test-slow: $(INSTALLED) ## the tests marked slow, the demo at its full size among them (an hour; for a person)
	$(VENV_PYTHON) -m pytest -q -n 2 -m "slow and not alone" $(ARGS) || test $$? = 5
	$(VENV_PYTHON) -m pytest -q -m "slow and alone" $(ARGS) || test $$? = 5

.PHONY: lint
lint: $(INSTALLED) ## ruff on modules, tests and notebooks
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check

.PHONY: lock
lock: $(INSTALLED) ## write constraints.txt anew, the newest versions that pyproject.toml admits (ARGS="torch==2.13.0")
	$(VENV_PYTHON) .ci/lock $(ARGS) > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt

.PHONY: clean-demo
clean-demo: ## delete what the demo, its effects and `make sweep` wrote
	rm -rf runs/demo runs/demo_full runs/demo_lora runs/demo_frozen runs/demo_effects* runs/sweep_demo runs/sweep_demo_* data/demo
