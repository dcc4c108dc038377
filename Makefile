# Two commands do everything on a machine with Python 3.11 or later: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REPO ?=
PORT ?= 8000
MINUTES ?= 10
QUICK ?=
EMMETT := benchmarks/peers/emmett
REFERENCE := benchmarks/peers/durable-streams

.PHONY: help demo page test faults check format bench clean

help:
	@echo "make demo    import a git repository's history, ask for its past, check it against git (REPO=path)"
	@echo "make page    an order on a page, live in every tab, and its past under a slider (PORT=8000)"
	@echo "make test    run the tests, on SQLite and on a real PostgreSQL"
	@echo "make faults  kill, cut and fill everything for a while, and compare (MINUTES=10)"
	@echo "make check   check format, lint and types, then run the tests"
	@echo "make format  format the code"
	@echo "make bench   measure speed against the raw driver and peers (QUICK=1: two minutes)"
	@echo "make clean   remove what the commands above have made"

demo: $(VENV)/demo
	$(BIN)/python examples/git_history.py $(if $(REPO),"$(REPO)")

page: $(VENV)/page
	$(BIN)/python examples/order_page.py --port $(PORT)

test: $(VENV)/test
	$(BIN)/python -m pytest -n auto

faults: $(VENV)/test
	$(BIN)/python tests/faults/run.py --minutes $(MINUTES)

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n auto

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/bench $(EMMETT)/node_modules/.installed $(REFERENCE)/node_modules/.installed
	QUICK=$(QUICK) $(BIN)/python benchmarks/report.py

# Peers on Node. Without Node the benchmarks leave them out, and say so.
%/node_modules/.installed: %/package.json
	@if command -v npm >/dev/null; then cd $* && npm install && touch node_modules/.installed; \
		else echo "npm is not there: without $*"; fi || echo "without $*"

clean:
	rm -rf tests/http/node/node_modules examples/order_page/node_modules examples/order_page/dist
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says which extras are installed; a change of the project's dependencies outdates it.
$(VENV)/demo: EXTRAS = cli
$(VENV)/page: EXTRAS = page
$(VENV)/test: EXTRAS = test
$(VENV)/dev: EXTRAS = dev
$(VENV)/bench: EXTRAS = bench
$(VENV)/demo $(VENV)/page $(VENV)/test $(VENV)/dev $(VENV)/bench: $(VENV)/pyvenv.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
