# Every target sets up what it needs; only Python 3.11 or newer and make have to be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo baseline regression test quick conformance lint format bench lock clean

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: $(READY)  ## Convert, verify and release the toy checkpoint: two variants, two resolutions
	test -d out/toy || $(BIN)/sdxl-coreml toy out/toy
	$(BIN)/sdxl-coreml run toy --source out/toy --out out/demo

baseline: demo  ## Accept the demo's results as the toy's baseline: make baseline REASON="..."
	$(BIN)/sdxl-coreml bless out/demo --baseline tests/data/toy_baseline.json --reason "$(REASON)"

regression: demo  ## Compare the demo's results with the toy's baseline
	$(BIN)/sdxl-coreml diff tests/data/toy_baseline.json out/demo

test: $(READY)  ## Run the tests
	PYTHONUTF8=1 $(BIN)/pytest --numprocesses 2 --durations 10

quick: $(READY)  ## Run the tests but for the slow ones
	PYTHONUTF8=1 $(BIN)/pytest --numprocesses 2 -m "not slow"

conformance: $(READY)  ## Run 7,000 of coremltools' own op tests against evaluator and compiler
	$(BIN)/python -m tests.conformance --processes 2

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Put style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Measure at full size, beside the peers (needs 40 GB of disk and an hour)
	$(BIN)/python -m bench
	$(BIN)/python -m bench.sources
	$(BIN)/python -m bench.verification
	$(BIN)/python -m bench.proof

lock: $(READY)  ## Write requirements.lock from what is installed
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock

clean:  ## Remove what the other targets made
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@# compat: the other way puts a finder before every start, a dozen milliseconds without our Ctrl-C
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	touch $@
