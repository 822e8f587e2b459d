# The two commands a fresh machine needs: `make demo` and `make test`. Both want Python >= 3.10 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test slow lint figures notebooks clean

demo: $(VENV)/demo.stamp  ## the main job in its quick form: error against sample size, VPT and VAPT
	$(BIN)/moe-prompt study run vpt-vs-vapt --quick --out demo
	$(BIN)/moe-prompt study show vpt-vs-vapt --quick --out demo

test: $(VENV)/test.stamp  ## everything but the slow tests
	$(BIN)/python -m pytest -n auto

slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/test.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

figures: $(VENV)/demo.stamp  ## redraw figures/ from the committed rows
	$(BIN)/moe-prompt figures

notebooks: $(VENV)/test.stamp
	$(BIN)/jupyter lab notebooks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) demo
