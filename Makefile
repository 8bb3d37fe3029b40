# Every developer command. `make help` lists them.
PYTHON ?= python
.DEFAULT_GOAL := help

.PHONY: help build gradients clean
help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build:  ## compile the extensions in place
	$(PYTHON) setup.py -q build_ext --inplace

gradients:  ## print every op's gradient error against finite differences
	$(PYTHON) -m tests.kernels.gradient_table

clean:  ## remove everything that a build or a test run made
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find entrenar -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
