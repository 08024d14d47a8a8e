# The whole life of a working copy. `make` alone lists what there is.

.DEFAULT_GOAL := help
.PHONY: help demo test test-resume chaos dev lint format bench lock clean

# The first Python that is new enough; `make PYTHON=/path/to/python …` chooses another.
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.14,$\
	$(shell $(name) -c '$(IS_NEW_ENOUGH)' >/dev/null 2>&1 && echo $(name))))

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := durable worker api tests examples benchmarks

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call quietly,COMMAND): its output is shown only when it fails.
quietly = log=$$(mktemp); $(1) >"$$log" 2>&1 || { code=$$?; cat "$$log" >&2; rm -f "$$log"; exit $$code; }; rm -f "$$log"

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Show one run from submit to three observers, then stop everything
	@$(BIN)/python examples/demo.py

# Tests wait more than they compute: two at a time take half as long. Those that measure how much happens come after them.
# pytest exits with 5 when ARGS leave nothing of a part.
test: $(INSTALLED) ## Run the test suite (ARGS="tests/unit -x" narrows it)
	@$(BIN)/pytest -n 2 --dist worksteal -m "not alone" $(ARGS) || test $$? = 5
	@$(BIN)/pytest -m alone $(ARGS) || test $$? = 5

# What is left out says that a run has one attempt: two tests, and those that are marked.
test-resume: $(INSTALLED) ## Run the functional tests with every run given back and resumed after each step
	@DURABLE_TEST_ALWAYS_RESUME=1 $(BIN)/pytest -n 2 --dist worksteal -m "not of_an_attempt" tests/integration/test_parity.py tests/chaos/test_always_resume.py \
		tests/integration/test_decisions.py tests/integration/test_conversations.py tests/integration/test_completion.py \
		tests/integration/test_budgets.py tests/integration/test_cancel.py tests/acceptance/test_budgets.py \
		tests/acceptance/test_api.py tests/acceptance/test_providers.py tests/acceptance/test_any_input.py \
		tests/acceptance/test_event_source.py tests/acceptance/test_bad_input.py tests/acceptance/mastra_client \
		--deselect tests/acceptance/test_api.py::TestRun::test_an_ended_run_tells_all_about_itself \
		--deselect tests/acceptance/test_api.py::TestStream::test_every_frame_has_its_seq_as_id_and_the_last_is_final $(ARGS)

SECONDS ?= 600
SEED ?= 1
chaos: $(INSTALLED) ## Crash everywhere, kill for SECONDS=600 with SEED=1, and break on purpose; reports in build/chaos/
	@CHAOS=all SEED=$(SEED) $(BIN)/pytest tests/chaos
	@$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --report build/chaos
	@echo "With fencing broken on purpose, the loop has to find faults:"
	@$(BIN)/python -m tests.chaos --seconds 90 --seed $(SEED) --sabotage fencing

WORKERS ?= 1
dev: $(INSTALLED) ## Run Redis, WORKERS=1 workers, the API and Flower here until Ctrl-C
	@DURABLE_AGENTS="$${DURABLE_AGENTS-examples.agents}" $(BIN)/durable dev --workers $(WORKERS)

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(INSTALLED) ## Put the code into the one style
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(INSTALLED) ## Run the benchmarks (QUICK=1: tiny sizes)
	@$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(ARGS)

# hatchling builds the project; it is locked with the rest, so that nothing unlocked is ever installed.
LOCK := uv pip compile pyproject.toml - --universal --python-version 3.11 --generate-hashes --quiet --upgrade \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: $(BIN)/python ## Resolve the newest allowed versions into the two lock files
	$(BIN)/pip install --quiet uv
	echo hatchling | $(BIN)/$(LOCK) --all-extras --group test --group lint --output-file requirements.lock
	echo hatchling | $(BIN)/$(LOCK) --extra dev --extra providers --constraint requirements.lock \
		--output-file requirements-image.lock

clean: ## Remove the environment and the caches (not .durable/, the data of `make dev`)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; name one with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is needed; name one with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) can't create environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(call quietly,$(PYTHON) -m venv --clear $(VENV))

# pip checks every file against its hash. The lock is complete, so nothing has to be resolved: pip before 24 would look
# for extras of what is locked anew. The project itself goes in without its dependencies, editable.
$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked packages (about a minute the first time)"
	@$(call quietly,$(BIN)/pip install --require-hashes --no-deps --requirement requirements.lock)
	@echo "Installing the project"
	@$(call quietly,$(BIN)/pip install --no-deps --no-build-isolation --editable .)
	@touch $@
