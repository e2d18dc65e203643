# Everything a fresh machine needs besides this file is Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output

.PHONY: help demo test check format bench clean

help:
	@echo "make demo    run a shipped CSV of prompts against a misbehaving simulated server; writes $(OUT)/"
	@echo "make test    the test suite"
	@echo "make check   ruff, ruff format, mypy"
	@echo "make format  let ruff format the code"
	@echo "make bench   rows/s of run_many beside other programs (needs nginx-light, libnginx-mod-http-echo)"
	@echo "make clean   remove $(VENV) and what the tools leave behind"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("llmlab needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[plots,parquet]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group check
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m llmlab demo --out $(OUT)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

check: $(VENV)/.check
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.check
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
