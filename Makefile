# Everything here does its own set-up: a virtual environment in .venv, and Work Queue from Debian where that is possible.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Workers for the tests: the machine's cores, at most 4.
JOBS   ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && n=4; echo $$n)

.PHONY: help demo test test-all check docs bench clean
help:
	@echo "make demo    a real manager and real workers run a function in an environment built for it"
	@echo "make test    the tests (about ten minutes on two cores)"
	@echo "make test-all  the tests with the long ones"
	@echo "make check   ruff, mypy --strict, shellcheck"
	@echo "make fuzz    ten thousand hostile inputs for everything that reads any (an hour; FUZZ=number)"
	@echo "make soak    twenty thousand tasks on each engine that is here, workers that die at any moment, a manager that dies once"
	@echo "make docs    these documents as a site, in build/site, and the manual pages in build/man"
	@echo "make bench   measurements against Debian's tools and conda-pack, as ratios"
	@echo "make clean   remove what these made (the environment cache stays)"

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	@touch $(STAMP)

.PHONY: engine
engine:
	@sh tools/get_work_queue

demo: $(STAMP) engine
	$(BIN)/python -m poncho_wq.cli.demo

test: $(STAMP) engine
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-all: $(STAMP) engine
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

# Every target's figures are printed at the end.
FUZZ ?= 10000
.PHONY: fuzz
fuzz: $(STAMP)
	PONCHO_FUZZ_EXAMPLES=$(FUZZ) $(BIN)/python -m pytest -q -n $(JOBS) tests/fuzz $(ARGS)

# Hours on a busy machine; `make soak ARGS="--engine taskvine --tasks 2000 --minutes 20"` is less.
.PHONY: soak
soak: $(STAMP) engine
	$(BIN)/python -m tests.engines.soak $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	sh tools/shellcheck

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/site
	$(BIN)/python tools/man_pages build/man
	@echo "build/site/index.html"

bench: $(STAMP) engine
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
