# `make help` lists the targets. VENV=DIR uses another environment than .venv.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
.DEFAULT_GOAL := help
.PHONY: help install check format test coverage slow smoke bench

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(VENV)/installed ## the environment, pinned by constraints.txt

$(VENV)/installed: pyproject.toml constraints.txt
	python3.11 -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

check: install ## lint, format, types, import contract
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PYTHON)
	$(VENV)/bin/lint-imports

format: install ## mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

test: install ## the tests (minutes, offline)
	$(PYTHON) -m pytest

coverage: install ## branch coverage of core, config and weights, at least 95 %
	$(PYTHON) -m pytest -q tests/unit/core tests/unit/config tests/unit/weights tests/unit/cli \
	  tests/unit/test_api.py tests/integration/test_common_tokens.py \
	  tests/property/test_store_properties.py tests/property/test_config_properties.py \
	  tests/property/test_residual_properties.py tests/integration/test_apply_models.py \
	  --cov=cpt_residual.core \
	  --cov=cpt_residual.config --cov=cpt_residual.weights --cov-fail-under=95

bench: install ## every benchmark; results in benchmarks/results
	$(PYTHON) benchmarks/plan.py
	$(PYTHON) benchmarks/training.py
	$(PYTHON) benchmarks/weights.py
	$(PYTHON) benchmarks/data.py

slow: install ## the tests marked slow
	$(PYTHON) -m pytest -n 0 -m slow

smoke: install ## plan every experiment, then run every stage once (about a minute)
	@for file in conf/experiment/*.yaml; do \
	  $(PYTHON) -m cpt_residual.plan +experiment=$$(basename $$file .yaml) || exit 1; \
	done
	$(PYTHON) -m cpt_residual.run +experiment=smoke
