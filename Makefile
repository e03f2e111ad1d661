# `make demo` and `make test` need Debian's or Ubuntu's make and python3 (3.11 or later), nothing else.
# The environment is created in .venv and kept until pyproject.toml changes.
# `make PYTHON=python3.13 test` chooses another Python; `make test ARGS="-k ring"` passes arguments on.

.DEFAULT_GOAL := help
.PHONY: help demo demo-buffer test test-all environments test-deployment faults check docs pictures coverage bench ratios fuzz soak chaos clean
# -j gains nothing here, and two installations into one environment would disturb each other.
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
# Each has a directory of its own in VENV.
ENVIRONMENTS := $(addprefix $(VENV)/.installed-,databroker1 influxdb prometheus slurm chromium axe debian-hdf5 redis oldest-h5py queues clean bec readers dranspose)
# Without this, pyright checks online for a later version of itself.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Services start in four fifths of the time when their modules are compiled once.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

demo: $(VENV)/.installed $(if $(findstring --udp,$(ARGS)),$(VENV)/.installed-udp) ## record simulated images and check every pixel of the files (in ./demo); ARGS=--udp: from packets
	@$(BIN)/stddaq demo $(ARGS)

demo-buffer: $(VENV)/.installed-buffer ## store simulated images in an image buffer, replay them and check every pixel (needs redis-server)
	@$(BIN)/python examples/store_and_replay.py $(ARGS)

test: $(VENV)/.compiled ## run the tests, except the slow ones, the faults, and those that need another environment
	@$(BIN)/pytest -n auto -m "not external and not slow and not fault" $(ARGS)

test-all: $(VENV)/.compiled $(ENVIRONMENTS) ## run all tests but that of the deployment
	@$(BIN)/pytest -n auto $(ARGS)

environments: $(ENVIRONMENTS) ## install what the tests of `test-all` need besides

test-deployment: $(VENV)/.installed-container ## deploy to a booted container, with root rights (about ten minutes)
	@[ ! -d $(VENV)/container ] || sh .ci/make-wheels $(VENV) $(VENV)/container/wheels
	@$(BIN)/pytest -n 0 tests/deployment $(ARGS)

faults: $(VENV)/.compiled ## provoke every fault and write the results into docs/explanations/faults.md
	@$(BIN)/pytest -n auto -m fault --fault-table=docs/explanations/faults.md $(ARGS)

check: $(VENV)/.installed-dev ## formatting, lint, types, import contracts, dead code
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture

docs: $(VENV)/.installed-dev ## build the documentation in build/docs; a warning or a broken link fails
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs 2 docs build/docs
	@echo "open build/docs/index.html"

pictures: $(VENV)/.installed-dev $(VENV)/.installed-chromium ## take the pictures of the page and of `stddaq watch` for the documentation
	@PYTHONPATH=tests $(BIN)/python -m support.tools.pictures docs/images

# Services of other users write their data there, too. Under coverage services are too slow for some promises of time:
# `make test` is the judge of the tests.
coverage: $(VENV)/.installed-dev ## run the tests with coverage of all processes; fail below the floor
	@rm -rf .coverage && mkdir -m 1777 .coverage
	-@$(BIN)/coverage run -m pytest -n auto -m "not external" $(ARGS)
	@$(BIN)/coverage combine --quiet 2>/dev/null
	@$(BIN)/coverage report --skip-covered --sort=cover

bench: $(VENV)/.installed-dev ## measure the services beside bare loops (half an hour on an idle machine)
	@$(BIN)/python benchmarks/run.py $(ARGS)

ratios: $(VENV)/.installed-dev ## compare writer, driver and live stream with bare loops in a minute; fail if they cost a fifth more
	@$(BIN)/python benchmarks/ratios.py $(ARGS)

fuzz: $(VENV)/.installed-dev ## send arbitrary input to every input for ten minutes
	@PYTHONPATH=tests $(BIN)/python -m support.tools.fuzz $(ARGS)

soak: $(VENV)/.installed-dev ## do hundreds of runs in ten minutes: nothing grows, every image is accounted for
	@PYTHONPATH=tests $(BIN)/python -m support.tools.soak $(ARGS)

chaos: $(VENV)/.installed-dev ## harm services at random for ten minutes: no wrong image is called good
	@PYTHONPATH=tests $(BIN)/python -m support.tools.chaos $(ARGS)

clean: ## remove the environment and all generated files
	rm -rf $(VENV) demo build dist .hypothesis .pytest_cache .ruff_cache .import_linter_cache .coverage
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Editable: a changed source needs no new installation.
$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "installing stddaq into $(VENV) ..."
	@sh .ci/install $(VENV) $(VENV) --editable .
	@touch $@

$(VENV)/.installed-udp: $(VENV)/.installed
	@echo "installing the extra [udp] into $(VENV) ..."
	@sh .ci/install $(VENV) $(VENV) --editable '.[udp]'
	@touch $@

$(VENV)/.installed-buffer: $(VENV)/.installed
	@echo "installing the extra [buffer] into $(VENV) ..."
	@sh .ci/install $(VENV) $(VENV) --editable '.[buffer]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the test tools into $(VENV) ..."
	@sh .ci/install $(VENV) $(VENV) --editable '.[dev]'
	@touch $@

# Otherwise the first services of all workers compile it, or wait for it, while tests run.
$(VENV)/.compiled: $(VENV)/.installed-dev $(wildcard src/stddaq/udp/*.py)
	@echo "compiling the functions of receivers and converters ..."
	@PYTHONPATH=tests $(BIN)/python -c 'import support.processes.compiled_code'
	@touch $@

# databroker 1 and 2 cannot share an environment.
$(VENV)/.installed-databroker1: $(VENV)/.installed-dev .ci/make-databroker1
	@sh .ci/make-databroker1 $(VENV)
	@touch $@

$(VENV)/.installed-influxdb: $(VENV)/.created .ci/make-debian-program
	@sh .ci/make-debian-program $(VENV)/influxdb influxdb
	@touch $@

$(VENV)/.installed-prometheus: $(VENV)/.created .ci/make-debian-program
	@sh .ci/make-debian-program $(VENV)/prometheus prometheus
	@touch $@

$(VENV)/.installed-slurm: $(VENV)/.created .ci/make-debian-packages
	@sh .ci/make-debian-packages $(VENV)/slurm slurmctld slurmd slurm-client munge
	@touch $@

$(VENV)/.installed-chromium: $(VENV)/.created .ci/make-debian-packages
	@sh .ci/make-debian-packages $(VENV)/chromium chromium fonts-dejavu-core
	@touch $@

$(VENV)/.installed-axe: $(VENV)/.installed-dev .ci/make-axe
	@sh .ci/make-axe $(VENV)
	@touch $@

$(VENV)/.installed-debian-hdf5: $(VENV)/.created .ci/make-debian-packages
	@sh .ci/make-debian-packages $(VENV)/debian-hdf5 python3-h5py hdf5-tools
	@touch $@

$(VENV)/.installed-redis: $(VENV)/.created .ci/make-debian-packages
	@sh .ci/make-debian-packages $(VENV)/redis redis-server
	@touch $@

$(VENV)/.installed-oldest-h5py: $(VENV)/.installed-dev pyproject.toml .ci/make-oldest-h5py
	@sh .ci/make-oldest-h5py $(VENV)
	@touch $@

$(VENV)/.installed-queues: $(VENV)/.installed-dev .ci/make-queues
	@sh .ci/make-queues $(VENV)
	@touch $@

$(VENV)/.installed-clean: $(VENV)/.installed-dev .ci/make-clean
	@sh .ci/make-clean $(VENV)
	@touch $@

$(VENV)/.installed-bec: $(VENV)/.installed-dev .ci/make-bec
	@sh .ci/make-bec $(VENV)
	@touch $@

$(VENV)/.installed-readers: $(VENV)/.installed-dev pyproject.toml .ci/make-readers
	@sh .ci/make-readers $(VENV)
	@touch $@

$(VENV)/.installed-dranspose: $(VENV)/.installed-dev pyproject.toml .ci/make-dranspose
	@sh .ci/make-dranspose $(VENV)
	@touch $@

$(VENV)/.installed-container: $(VENV)/.installed-dev pyproject.toml .ci/make-container .ci/make-wheels
	@sh .ci/make-container $(VENV)
	@touch $@

$(VENV)/.created:
	@PYTHON='$(PYTHON)' sh .ci/make-environment $(VENV)
	@touch $@
