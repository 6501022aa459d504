# `make demo` makes a clip with sound on any laptop, `make test` checks everything. `make help` lists the rest.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help browser demo test fast lint types suite long docs dist coverage campaign bounds bench-check bench-memory gpu-rehearsal lock clean
.DELETE_ON_ERROR:

help:  ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed  ## make one clip with the embedded model: demo.mp4
	@$(BIN)/ladder make "a red ball rolls to the right over a striped floor" -o demo.mp4 --overwrite --seed 10
	@echo "The clip is in $(CURDIR)/demo.mp4. Make your own with $(BIN)/ladder make \"a prompt\","
	@echo "or on a page in the browser: $(BIN)/ladder studio"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[serve]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[dev,docs]"
	@touch $@ $(VENV)/.installed

test: $(VENV)/.installed-dev browser lint types docs suite  ## everything that CI checks

fast: $(VENV)/.installed-dev  ## the tests that a change breaks most often, under a minute
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.installed-dev  ## style, spelling, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/typos --force-exclude
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev  ## mypy, strict
	$(BIN)/mypy

browser:  ## Chromium for the browser tests, installed by root where apt-get finds it (else they are skipped)
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| if [ "$$(id -u)" = 0 ] && apt-get update -qq --error-on=any 2>/dev/null \
			&& apt-cache show chromium >/dev/null 2>&1; then \
			apt-get install -qq --no-install-recommends chromium; \
		else echo "no Chromium, and it cannot be installed here: the browser tests are skipped"; fi

# with a browser the browser tests must run: a missing package is then a failure, not a skipped test
HAS_BROWSER = $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

suite: $(VENV)/.installed-dev  ## all tests but the long variants
	OMP_NUM_THREADS=1 LADDER_BROWSER_TESTS=$(if $(HAS_BROWSER),1) $(BIN)/python -m pytest -n 2 -m "not long"

long: $(VENV)/.installed-dev  ## more variants of whole runs on a pretended GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m long

coverage: $(VENV)/.installed-dev  ## all tests, with the share of lines that they run: coverage.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov=latent_ladder --cov-report=term:skip-covered | tee coverage.txt

COUNTS ?= --scale 1 --seed 1
campaign: $(VENV)/.installed-dev  ## faulty and hostile inputs, thousands of them (COUNTS="--scale 5 --seed 7")
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m campaign $(COUNTS)

docs: $(VENV)/.installed-dev  ## the documents as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/.installed-dev  ## build the packages, check them, make a clip from the wheel in an empty folder
	rm -rf dist build/wheel-check
	$(PIP) build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m venv build/wheel-check/venv
	build/wheel-check/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/wheel-check && venv/bin/ladder --version && venv/bin/ladder make "a blue square grows" -o check.mp4

RESOLUTION ?= lowest-direct
bounds:  ## the suite with the oldest dependencies allowed (RESOLUTION=highest: with the newest)
	rm -rf build/bounds
	uv venv --quiet --python $(PYTHON) build/bounds
	uv pip install --quiet --python build/bounds --resolution $(RESOLUTION) --editable ".[dev]"
	uv pip list --python build/bounds
	OMP_NUM_THREADS=1 build/bounds/bin/python -m pytest -n 2

bench-check: $(VENV)/.installed-dev  ## measure the ratios of benchmarks/history anew and compare
	$(PIP) --editable ".[bench]"
	$(BIN)/python benchmarks/check_history.py

JOBS ?=
bench-memory: $(VENV)/.installed-dev  ## simulate the memory of the 22B model (JOBS="--precision fp8 --card 16")
	$(BIN)/python benchmarks/memory_simulation.py $(JOBS)
	$(BIN)/python benchmarks/memory_simulation.py --write

gpu-rehearsal: $(VENV)/.installed-dev  ## the scripts for a GPU (benchmarks/gpu) on a pretended one
	for script in correctness speed end_to_end; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gpu/$$script.py --pretend twin || exit 1; done

TORCH := 2.13.0
lock:  ## write constraints.txt from the newest versions of everything but torch (needs uv)
	@mkdir -p build && echo "torch==$(TORCH)" > build/torch.txt
	@echo "# Versions that make installs (make lock); the package itself allows ranges." > constraints.txt
	uv pip compile --quiet --upgrade pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links -c build/torch.txt >> constraints.txt

clean:  ## remove what these targets made
	rm -rf $(VENV) build dist site coverage.txt .coverage demo.mp4
