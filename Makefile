# Every target makes its own .venv when there is none, and reuses it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

DATA ?= ../shared/data/covid_chestxray

.PHONY: venv demo study mutants browser test test-isa test-lowest test-pythons test-all lint bench docs clean

venv: $(READY)

# PyTorch comes as torchvision's own requirement, so that the two always match.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,hub,docs,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/embedprior demo --out runs/demo

study: $(READY)
	$(BIN)/embedprior study run --config covid_pilot --data $(DATA) --out runs/covid

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n $(JOBS) --dist worksteal

# Slow: the suite on the kernels that older processors would run, and once as on a processor whose kernels depend on the
# number of rows (tests/other_kernels.py). What is promised bit for bit holds on each.
test-isa: $(READY)
	set -e; for limit in ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=AVX2; do \
		echo "== $$limit"; \
		env $$limit OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n $(JOBS) --dist worksteal; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.other_kernels -m 'not slow' -n $(JOBS) --dist worksteal

# Slow: the suite with the lowest version of every requirement that pyproject.toml declares, in an environment of its own
# (4.5 GB). Tests of packages that are not there are skipped. TESTS="tests/cache tests/prior" runs a part.
LOWEST := .venv-lowest
TESTED_WITH := pytest pytest-timeout pytest-xdist hypothesis jsonschema nibabel markdown-it-py pydicom-data
TESTS ?= tests
$(LOWEST)/.ready: pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra timm --extra parquet --extra hub pyproject.toml \
		-o $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python -r $(LOWEST)/lowest.txt -c $(LOWEST)/lowest.txt $(TESTED_WITH)
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	touch $(LOWEST)/.ready

test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m 'not slow' -n $(JOBS) --dist worksteal $(TESTS)

# Slow: the newest requirements on later versions of Python, where those are installed; a part of the suite.
SMOKE := tests/golden tests/cache tests/evidence tests/prior tests/runs tests/cli/test_embed.py tests/cli/test_drr.py
test-pythons:
	set -e; for version in 3.12 3.13; do \
		if ! python$$version -c '' 2> /dev/null; then echo "== Python $$version is not installed: not tested"; continue; fi; \
		echo "== Python $$version"; folder=.venv-$$version; \
		test -x $$folder/bin/python || python$$version -m venv $$folder; \
		$$folder/bin/python -m pip install --quiet --editable '.[timm,parquet,hub]' $(TESTED_WITH); \
		OMP_NUM_THREADS=1 $$folder/bin/python -m pytest -m 'not slow' -n $(JOBS) --dist worksteal $(SMOKE); \
	done

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal
	$(BIN)/python tools/faults.py
	$(MAKE) mutants
	$(MAKE) browser

# Pages of reports in headless Chromium: valid HTML, axe, no overflow, sorting by keyboard, print. Needs chromium, node
# and java beside Python; what checks is installed into build/browser.
browser: $(READY)
	mkdir -p build/browser
	cp tools/browser/package.json build/browser/
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix build/browser
	OMP_NUM_THREADS=1 $(BIN)/embedprior demo --config quick --out build/browser/demo > /dev/null
	PYTHONPATH=.:tests/report $(BIN)/python tools/browser/pages.py build/browser/pages > build/browser/pages.txt
	node tools/browser/check.mjs build/browser/demo/report.html $$(cat build/browser/pages.txt)

mutants: $(READY)
	$(BIN)/python tools/mutants.py

bench: $(READY)
	set -e; for script in tools/bench/*.py; do echo "== $$script"; $(BIN)/python $$script; done

# The pages of docs/ as a site, in build/site; a link that leads nowhere is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f tools/docs/mkdocs.yml

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache
