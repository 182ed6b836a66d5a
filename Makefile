# Needs make, Python 3.11 or newer and pip. `make quickstart` and `make test` set up what they need, once.

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PYTHON ?= python3
LLAMA_CPP := 0.3.36

.PHONY: quickstart test setup lint types unit soak load mutants oracles llama-cpp release lock docs lm-eval fuzz audit shipped synthetic clean help

quickstart: setup  ## set up and run the main job: meta-train and compare on a small real model
	$(BIN)/abmll compare quickstart

test: setup  ## set up and run lint, types and tests, at most 8 minutes on two cores
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory --jobs 2 types unit

setup: $(VENV)/complete  ## make the virtual environment .venv, if it is missing or out of date

$(VENV)/complete: constraints.txt pyproject.toml .ci/setup .ci/requirements.py
	@.ci/setup

lint: setup  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

unit: setup  ## pytest on JOBS processes: neighbours share fixtures, and who is done takes half of what another has left
	$(BIN)/pytest -n $(JOBS) --dist worksteal

soak: setup  ## the long campaigns (kills, signals, damage, memory), about half an hour; writes tests/survival/results
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=.:src $(BIN)/python -m tests.survival.soak

load: setup  ## abmll serve killed ten times; then 50 clients, 10,000 rows by SmolLM2: benchmarks/results/serving.json
	ABMLL_KILLS=10 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/pytest tests/survival/test_serving.py
	OMP_NUM_THREADS=$(JOBS) HF_HUB_OFFLINE=1 PYTHONPATH=.:src $(BIN)/python -m benchmarks.serving --out benchmarks/results/serving.json

shipped: setup  ## make again the adapter that comes with abmll (src/abmll/recipes/shipped.yaml), from nothing
	rm -rf runs/shipped
	$(BIN)/abmll train shipped -o runs/shipped
	$(BIN)/python -m abmll.everyday.ship runs/shipped smollm2

synthetic: setup  ## ABMLL where the truth is known, what is missing of it; writes experiments/synthetic/results
	OMP_NUM_THREADS=1 PYTHONPATH=.:src $(BIN)/python -m experiments.synthetic run
	OMP_NUM_THREADS=1 PYTHONPATH=.:src $(BIN)/python -m experiments.synthetic report

mutants: setup  ## the mutation score: mutants drawn in each group, run by the tests that can kill them; about an hour
	$(BIN)/pip install --quiet --constraint constraints.txt mutmut==3.8.1
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. nice $(BIN)/python -m tests.mutation --jobs $(JOBS) $(MUTANTS)

oracles: setup  ## the rivals against the packages of their authors: ivon-opt, laplace-torch
	$(BIN)/pip install --quiet --constraint constraints.txt ivon-opt==0.1.3 laplace-torch==0.3
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/pytest tests/oracles

llama-cpp: setup  ## our exports in llama.cpp: builds its PyPI package (ten minutes) in .venv-llama, and compares
	test -x $(VENV)-llama/bin/python || $(PYTHON) -m venv $(VENV)-llama
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(VENV)-llama/bin/pip install --quiet "llama-cpp-python[server]==$(LLAMA_CPP)"
	mkdir -p $(VENV)-llama/source
	$(VENV)-llama/bin/pip download --quiet --no-deps --no-binary llama-cpp-python --dest $(VENV)-llama "llama-cpp-python==$(LLAMA_CPP)"
	tar xzf $(VENV)-llama/llama_cpp_python-$(LLAMA_CPP).tar.gz -C $(VENV)-llama/source --strip-components 1
	ABMLL_LLAMA_CPP=$(abspath $(VENV)-llama) ABMLL_SERVER_RESULTS=benchmarks/results/servers.json \
		OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/pytest -rs tests/oracles/test_servers.py

gpu-tests: setup  ## what only a CUDA device shows: kernels, captured steps, attention; and bitsandbytes, which is installed
	$(BIN)/pip install --quiet --constraint constraints.txt bitsandbytes
	HF_HUB_OFFLINE=1 TRITON_INTERPRET=0 $(BIN)/pytest -rs tests/gpu tests/unit/test_quantised.py

release: setup  ## build wheel and sdist, check them, install into a new venv elsewhere, run README's two commands there
	$(BIN)/python .ci/release.py

lock: setup  ## requirements.lock again, from constraints.txt: hashes of everything but torch
	$(BIN)/python .ci/lock.py

docs: setup  ## install sphinx and build the documentation into docs/_build; warnings are errors, nothing is fetched
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	HF_HUB_OFFLINE=1 $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo "Written: docs/_build/index.html"

lm-eval: setup  ## install lm-evaluation-harness (160 MB) and run the tests of abmll.lm_eval, which skip without it
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lm-eval]'
	$(BIN)/pytest tests/unit/test_lm_eval.py

fuzz: setup  ## spoilt files of every kind, the long form; writes tests/hostile/RESULTS.md
	$(BIN)/python -m tests.hostile.fuzz

audit:  ## known holes in the versions of constraints.txt, by pip-audit in a venv of its own; needs PyPI's advisories
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:  ## remove .venv and all caches; results in runs/ stay
	rm -rf $(VENV) $(VENV)-audit $(VENV)-llama docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1	\2/p' Makefile
