# Every developer command. `make help` lists them.
PYTHON ?= python
SCRIPTS = $$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
# The script, not `python -m pytest`: that would put this folder, with its uncompiled sources, before what is installed.
PYTEST = "$(SCRIPTS)/pytest"
# The whole suite, in as many processes (WORKERS=4); the tests of a file share what they set up, so they stay together.
SUITE = $(PYTEST) -n $(or $(WORKERS),2) --dist loadfile
MKDOCS = "$(SCRIPTS)/mkdocs"
C_FILES = $$(find entrenar tests -name '*.[ch]')
# The tests on the tree that `make build` compiled in place, without installing anything.
ON_TREE = PYTHONPATH="$(CURDIR)" $(PYTEST) -q
HISTORY_FILE = $(or $(HISTORY),benchmarks/history.jsonl)
.DEFAULT_GOAL := help

.PHONY: help build install test test-peers edges mutate-files lint format gradients bench llama-fuzz fuzz-check clean \
	tier1 tier2 tier3 llama-tests llama-properties llama-mutations llama-chaos llama-gradients llama-examples llama-ci \
	imports observability release coverage family-table profile-llama profile-llama-otlp profile-llama-anomaly \
	planted-faults bench-history docs memory-table

help:  ## list the commands
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build:  ## compile the extensions in place (for work on the sources)
	@$(PYTHON) -c 'import importlib.util, sys; sys.exit(0 if importlib.util.find_spec("Cython") else \
		"build: Cython is missing; pip install \x27.[dev]\x27.")'
	$(PYTHON) setup.py -q build_ext --inplace

install:  ## install the package with what its tests need
	$(PYTHON) -m pip install -q '.[test]'

test: install  ## install and run the tests, in two processes (WORKERS=4)
	$(SUITE)

test-peers:  ## also install PyTorch, transformers, PEFT and bitsandbytes, and run the tests with them
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[test,peers]'
	$(SUITE)

docs:  ## build the documentation as a site in build/site, without warnings
	$(PYTHON) -m pip install -q '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(MKDOCS) build --quiet

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
	$(PYTHON) scripts/simd_pxd.py --check
	PYTHONPATH="$(CURDIR)" $(PYTHON) scripts/observability.py --check
	$(PYTHON) scripts/check_cython.py

format:  ## let ruff format and sort imports, clang-format format C, and write simd/*.pxd
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	"$(SCRIPTS)/clang-format" -i $(C_FILES)
	$(PYTHON) scripts/simd_pxd.py

gradients: install  ## print the finite-difference error of every op's cases
	$(PYTHON) scripts/gradient_table.py

family-table:  ## print what every family of models agrees with (transformers, PEFT, llama.cpp), and how nearly
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[test,peers]'
	$(PYTHON) scripts/family_table.py

observability:  ## write observability/ (Prometheus, alert rules, Grafana's dashboard) from the table of metrics
	PYTHONPATH="$(CURDIR)" $(PYTHON) scripts/observability.py

imports:  ## print the circles and the upward imports of the package
	$(PYTHON) scripts/imports.py

tier1: build lint  ## the quick gate, on the tree: format check, lint, unit and gradient tests
	$(ON_TREE) -m "(unit or gradient) and not slow"

tier2: tier1  ## tier1 and what takes longer: properties, planted bugs, mutated files
	$(ON_TREE) -m "(property or mutation) and not (unit or gradient)"

tier3: tier2  ## tier2 and killed processes, hostile input, memory
	$(ON_TREE) -m "(chaos or memory) and not (unit or gradient or property or mutation)"

llama-tests: build  ## the tests of models, adapters and training, on the tree
	$(ON_TREE) tests/nn tests/models tests/adapters tests/train

llama-properties: build  ## the tests on generated inputs
	$(ON_TREE) -m property

llama-mutations: build  ## the tests that planted bugs and mutated files are noticed
	$(ON_TREE) -m mutation

llama-chaos: build  ## the tests with killed processes, truncated files and hostile input
	$(ON_TREE) -m chaos

llama-gradients: build  ## the gradient tests, and the table of every op's error
	$(ON_TREE) -m gradient
	PYTHONPATH="$(CURDIR)" $(PYTHON) scripts/gradient_table.py

llama-examples: build  ## run each example, small
	$(ON_TREE) tests/examples

llama-ci: install  ## install, run the tests, and report what this run measured
	mkdir -p build
	$(SUITE) --report build/report.json
	$(PYTHON) scripts/metrics_report.py build/report.json

coverage:  ## which lines of Python, Cython and C the unit and gradient tests run (TESTS="tests/autograd" for others)
	$(PYTHON) -m pip install -q '.[dev]'
	$(PYTHON) scripts/coverage_table.py $(TESTS)

release:  ## make the sdist and the wheel in dist/, install the wheel in a fresh environment and use it
	$(PYTHON) -m pip install -q '.[dev]'
	$(PYTHON) scripts/release.py

profile-llama: build  ## which system calls a training run makes, how long they take and why (SECONDS=6; needs strace)
	PYTHONPATH="$(CURDIR)" $(PYTHON) scripts/profile_llama.py --seconds $(or $(SECONDS),6)

profile-llama-otlp: build  ## train the example traced to an OTLP receiver, and say where the trace is (STEPS=10)
	PYTHONPATH="$(CURDIR)" $(PYTHON) scripts/profile_llama_otlp.py --steps $(or $(STEPS),10)

profile-llama-anomaly: build  ## train the example watched, then say what was slow or unusual, and why (STEPS=60)
	@$(PYTHON) -c 'import importlib.util, sys; sys.exit(0 if importlib.util.find_spec("sklearn") else \
		"profile-llama-anomaly: scikit-learn is missing; pip install \x27entrenar[analyze]\x27.")'
	PYTHONPATH="$(CURDIR)" $(PYTHON) examples/llama2_finetune_qlora.py --monitor --overwrite \
		--output outputs/profile-anomaly --steps $(or $(STEPS),60)
	PYTHONPATH="$(CURDIR)" PYTHON="$(PYTHON)" scripts/analyze_training.sh outputs/profile-anomaly

planted-faults: build  ## plant faults in watched runs, and count the false alarms of runs without any (CLEAN=10)
	PYTHONPATH="$(CURDIR)" $(PYTHON) scripts/planted_faults.py --clean $(or $(CLEAN),10)

memory-table:  ## hold the plan of `entrenar memory` against the peak of eight real runs; fails beyond 5 %
	$(PYTHON) -m pip install -q .
	$(PYTHON) scripts/memory_table.py $(MODEL)

bench:  ## install with the peers and measure speed and memory against them (BENCH="step --quick" for a part)
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[peers]' xllamacpp
	$(PYTHON) benchmarks/run.py $(BENCH)

bench-history:  ## bench, its results kept with the commit (HISTORY=FILE); fails where something became slower
	$(PYTHON) -m pip install -q torch==2.13.0
	$(PYTHON) -m pip install -q '.[peers]' xllamacpp
	@status=0; $(PYTHON) benchmarks/run.py --history $(HISTORY_FILE) $(BENCH) || status=$$?; \
		"$(SCRIPTS)/entrenar" compare --history $(HISTORY_FILE) && exit $$status

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
