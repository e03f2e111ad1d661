# `make demo` and `make test` need Debian's or Ubuntu's make and python3 (3.11 or later), nothing else:
# the environment is made in .venv, and kept until pyproject.toml changes.
# `make PYTHON=python3.13 test` takes another Python; `make test ARGS="-k ring"` hands arguments on.

.DEFAULT_GOAL := help
.PHONY: help demo test faults check bench fuzz soak clean
# Nothing here gains from -j, and two installations into one environment would disturb each other.
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
# pyright looks on the internet for a later version of itself, otherwise.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Services whose sources are compiled once start in four fifths of the time.
unexport PYTHONDONTWRITEBYTECODE

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: $(VENV)/.installed ## record simulated images and check every pixel of the files (in ./demo)
	@$(BIN)/stddaq demo $(ARGS)

test: $(VENV)/.installed-dev $(VENV)/.installed-databroker1 $(VENV)/.installed-influxdb ## run the tests
	@$(BIN)/pytest -n auto $(ARGS)

faults: $(VENV)/.installed-dev ## provoke every fault, and write what was seen into docs/explanations/faults.md
	@$(BIN)/pytest -n auto -m fault --fault-table=docs/explanations/faults.md $(ARGS)

check: $(VENV)/.installed-dev ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-dev ## what the services cost, beside bare loops (half an hour, nothing else running)
	@$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(VENV)/.installed-dev ## arbitrary input for every input there is, for ten minutes
	@PYTHONPATH=tests $(BIN)/python -m support.tools.fuzz $(ARGS)

soak: $(VENV)/.installed-dev ## hundreds of runs back to back, for ten minutes: nothing grows, nothing is lost
	@PYTHONPATH=tests $(BIN)/python -m support.tools.soak $(ARGS)

clean: ## remove the environment and everything that can be made again
	rm -rf $(VENV) demo build dist .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Editable, so that a changed source needs no new installation.
$(VENV)/.installed: $(VENV)/.created pyproject.toml src/stddaq/__init__.py
	@echo "installing stddaq into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the test tools into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

# databroker 1 and 2 cannot be in one environment.
$(VENV)/.installed-databroker1: $(VENV)/.installed-dev .ci/make-databroker1
	@sh .ci/make-databroker1 $(VENV)
	@touch $@

$(VENV)/.installed-influxdb: $(VENV)/.created .ci/make-influxdb
	@sh .ci/make-influxdb $(VENV)/influxdb
	@touch $@

$(VENV)/.created:
	@PYTHON='$(PYTHON)' sh .ci/make-environment $(VENV)
	@touch $@
