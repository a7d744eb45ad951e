# make demo | make test | make test-nvme | make lint | make docs: each makes .venv first and installs
# what constraints.txt pins.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Where it is set, every process of the tests would compile torch and Ray anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-nvme lint format docs clean

demo: $(INSTALLED)
	$(BIN)/perceiver demo

# In two processes, each of which takes whole files.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# DeepSpeed builds what reads and writes NVMe, which takes minutes once on a machine.
test-nvme: $(INSTALLED)
	TEST_NVME=1 $(BIN)/python -m pytest tests/test_nvme.py tests/test_nvme_parameters.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Without --quiet, which would hide warnings from --strict, too.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# pip would compile all 27,000 files for a minute. Python compiles those that are imported.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[demo,dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build site .pytest_cache .mypy_cache .ruff_cache *.egg-info
