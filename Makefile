# Every developer command. `make help` lists them.
PYTHON ?= python
SCRIPTS = $$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
# The script, not `python -m pytest`: that would put this folder, with its uncompiled sources, before what is installed.
PYTEST = "$(SCRIPTS)/pytest"
C_FILES = $$(find entrenar benchmarks tests -name '*.[ch]')
.DEFAULT_GOAL := help

.PHONY: help build install test test-peers edges mutate-files lint format gradients bench llama-fuzz fuzz-check clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build:  ## compile the extensions in place (for work on the sources)
	$(PYTHON) setup.py -q build_ext --inplace

install:  ## install the package with what its tests need
	$(PYTHON) -m pip install -q '.[test]'

test: install  ## install and run the tests
	$(PYTEST)

test-peers:  ## also install PyTorch, transformers, PEFT and bitsandbytes, and run the tests with them
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[test,peers]'
	$(PYTEST)

edges:  ## compare every variation of what is read with transformers, llama.cpp and PEFT; writes docs/edges.md
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[test,peers]'
	$(PYTEST) tests/edges/test_edges.py -q -k test_variation --edges-table docs/edges.md

mutate-files:  ## load thousands of mutated files of each kind and print what became of them (MUTATIONS=5000)
	MUTATIONS=$(or $(MUTATIONS),5000) $(PYTEST) tests/mutations -q -k mutated_file

lint:  ## ruff, mypy, clang-format, cython-lint, and no performance hints from Cython
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	"$(SCRIPTS)/clang-format" --dry-run -Werror $(C_FILES)
	PATH="$(SCRIPTS):$$PATH" cython-lint entrenar
	$(PYTHON) scripts/check_cython.py

format:  ## let ruff format and sort imports, and clang-format format C
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	"$(SCRIPTS)/clang-format" -i $(C_FILES)

gradients: install  ## print the finite-difference error of every op's cases
	$(PYTHON) scripts/gradient_table.py

bench:  ## install with the peers and measure speed and memory against them (BENCH="step --quick" for a part)
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[peers]' xllamacpp
	$(PYTHON) benchmarks/run.py $(BENCH)

llama-fuzz:  ## fuzz configurations and op graphs (FUZZ_RUNS inputs each; a million, and 100,000 graphs, where unset)
	$(PYTHON) scripts/run_fuzz.py $(if $(FUZZ_RUNS),--runs $(FUZZ_RUNS))

fuzz-check:  ## show that each fuzz target finds a bug planted in Python and one planted in a kernel
	$(PYTHON) -m pip install -q '.[fuzz,dev]'
	$(PYTHON) scripts/plant_bugs.py

clean:  ## remove everything that a build or a test run made
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -rf fuzz/corpus fuzz/crashes benchmarks/results
	find entrenar -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
