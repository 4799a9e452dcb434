# Every target makes its own .venv when there is none, and reuses it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

DATA ?= ../shared/data/covid_chestxray

.PHONY: venv demo study mutants browser test test-isa test-all lint bench docs clean

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
	PYTHONPATH=. $(BIN)/python tools/browser/pages.py build/browser/pages > build/browser/pages.txt
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
