# Everything is done through these targets; `make help` lists them.
# VENV=path uses another virtual environment; a torch that is already in it is kept.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.pserver-setup
CODE := ps workers deploy benchmarks protos/generate.py
# Tests start hundreds of processes: each would compile all that it imports where nobody may keep it.
COMPILED := env -u PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup train test hosts models explore chaos fuzz mutants check stubs bench bench-local bench-network bench-scale bench-streams bench-codecs bench-hostile bench-formats bench-checkpoints bench-recovery plan-accuracy plan-stages plan-scale plan-classes verdicts docs clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## Make .venv (or complete VENV=path) with everything that is needed

train: $(STAMP)  ## Train a model on scikit-learn's digits: 2 Ray workers, 2 servers
	@$(VENV)/bin/pserver run examples/digits.toml

test: $(STAMP)  ## Run all tests but those of `make hosts`: three at a time, then those that measure time
	@$(COMPILED) $(PYTHON) -m pytest -m "not hosts and not alone" -n 3 --dist loadgroup --no-loadscope-reorder
	@$(COMPILED) $(PYTHON) -m pytest -m alone $$(grep -rl --include='*.py' 'mark\.alone' tests)

hosts: $(STAMP)  ## Run the tests on several Ray nodes, on virtual hosts (as root, some minutes)
	@$(PYTHON) -m pytest -m hosts

models: $(STAMP)  ## Search the larger models of the protocol too (some minutes)
	@PYTHONPATH=. $(PYTHON) -m tests.ps.models.run_all

explore: $(STAMP)  ## Simulate thousands of histories of the protocol, with everything that may go wrong (ARGS="--seed 1234 --trace")
	@PYTHONPATH=. $(PYTHON) -m tests.explore $(ARGS)

chaos: $(STAMP)  ## Kill, end, stop and cut off processes of real runs, and compare the bits (ARGS="--faults 20 --seed 7 --launcher ray")
	@PYTHONPATH=. $(PYTHON) -m tests.chaos $(ARGS)

fuzz: $(STAMP)  ## Send wrong messages to every method and give wrong bytes to every reader of a format (ARGS="--seconds 60 --seed 7")
	@PYTHONPATH=. $(PYTHON) -m tests.fuzz $(ARGS)

mutants: $(STAMP)  ## Switch each guard of the step off, and see that a test fails (some minutes; ARGS="--guards fence weight")
	@PYTHONPATH=. $(PYTHON) -m tests.mutants $(ARGS)

check: $(STAMP)  ## Lint, format, types, generated stubs, import rules
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy $(CODE)
	@$(PYTHON) protos/generate.py --check
	@$(PYTHON) -m pytest -q tests/test_imports.py

stubs: $(STAMP)  ## Generate the stubs of protos/pserver.proto
	@$(PYTHON) protos/generate.py

bench: bench-local bench-codecs  ## Run all of the project's benchmarks

bench-local: $(STAMP)  ## Measure steps on this machine beside DDP and Ray's example (ARGS="--workers 3 --model-bytes 400MB")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.local $(ARGS)

bench-network: $(STAMP)  ## Measure exchanges over thin links beside gloo's (ARGS="--bandwidth 200mbit"); as root in network namespaces
	@PYTHONPATH=. $(PYTHON) -m benchmarks.network $(ARGS)

bench-scale: $(STAMP)  ## Measure a server's CPU with 64 and 256 workers, and its memory (ARGS="--workers 128")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.scale $(ARGS)

bench-streams: $(STAMP)  ## Measure steps with more streams, more servers on one host, and other frames (ARGS="--model-bytes 400MB")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.streams $(ARGS)

bench-codecs: $(STAMP)  ## Measure what the wire formats cost (ARGS="--elements N")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.codecs $(ARGS)

bench-hostile: $(STAMP)  ## Measure steps while strangers flood the run's server, and what TLS costs (ARGS="--kinds push --rounds 5")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.hostile $(ARGS)

bench-formats: $(STAMP)  ## Train Fashion-MNIST in every wire format, and write docs/formats.md (some minutes; ARGS="--epochs 8")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.formats $(ARGS)

bench-checkpoints: $(STAMP)  ## Measure what checkpoints cost, in steps with and without (ARGS="--model-bytes 400MB --storage /disk")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.checkpoints $(ARGS)

bench-recovery: $(STAMP)  ## Measure how long training stands still when processes are killed, by launcher (ARGS="--rounds 5 --launchers ray")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.recovery $(ARGS)

bench-stages: $(STAMP)  ## Measure a worker's memory when its rank is split over stages, and their bubble (ARGS="--model-bytes 400MB --stages 2 4")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.stages $(ARGS)

plan-accuracy: $(STAMP)  ## Compare the plan with runs on virtual hosts, and write docs/plan-accuracy.md (as root, half an hour; ARGS="--cases 6")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.accuracy --table docs/plan-accuracy.md $(ARGS)

plan-stages: $(STAMP)  ## Compare plans of ranks and stages with runs on virtual hosts (as root, three minutes; ARGS="--rates 100mbit")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.divisions $(ARGS)

plan-scale: $(STAMP)  ## Write the tables of docs/scale.md anew: the plan from 2 to 10,000 workers (a quarter of an hour)
	@PYTHONPATH=. $(PYTHON) -m benchmarks.growth

plan-classes: $(STAMP)  ## Compare the model's classes of equal members with every member by itself (ten minutes; ARGS="--workers 40 --servers 10")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.classes $(ARGS)

verdicts: $(STAMP)  ## Plant bottlenecks on virtual hosts, and see that they are named (as root, ten minutes; ARGS="--cases 6 --seed 3 --tried 2")
	@PYTHONPATH=. $(PYTHON) -m benchmarks.verdicts $(ARGS)

docs: $(STAMP)  ## Make the plots of docs/optimisation.md anew (installs matplotlib)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --editable '.[docs]' --constraint build/constraints.txt
	@$(PYTHON) docs/plots/make.py

clean:  ## Remove what the targets above made, except runs
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp names the checkout it was made for: in a moved or shared environment everything is installed anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

OUR_TORCH = $(shell sed -n 's/^torch==//p' constraints.txt)
FOUND_TORCH = $(shell $(PYTHON) -c 'import torch; print(torch.__version__)' 2>/dev/null)
TORCH = $(if $(filter .venv,$(VENV)),$(OUR_TORCH),$(or $(FOUND_TORCH),$(OUR_TORCH)))

$(STAMP): pyproject.toml constraints.txt ps/kernels.c | $(PYTHON)
	@echo "installing pserver and its dependencies into $(VENV) (a few minutes the first time)"
	@mkdir -p build
	@sed "s/^torch==.*/torch==$(TORCH)/" constraints.txt > build/constraints.txt
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip >/dev/null
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --editable '.[dev]' --constraint build/constraints.txt
	@echo '$(CURDIR)' > $@

$(PYTHON):
	@for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; echo "found no Python >= 3.11 with venv: install one (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1
