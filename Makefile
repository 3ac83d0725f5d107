# Every target runs in the active environment if that has what pyproject.toml asks for, else in .venv, made on first use.
SCALE ?= mini
SEED  ?= 0

IN := tools/in-environment
.DEFAULT_GOAL := help
.PHONY: help reproduce test lab lint clean

help:  ## show this
	@sed -n 's/^\([a-z]*\):  *## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r t h; do printf '  make %-10s %s\n' "$$t" "$$h"; done
	@echo "  Settings: SCALE=$(SCALE) SEED=$(SEED) PYTHON=(an interpreter to make .venv with)"

reproduce:  ## train, evaluate and draw everything: all notebooks at SCALE (finished ones are skipped)
	@$(IN) python -m diffclip reproduce --scale $(SCALE) --seed $(SEED)

# No test reaches for the network: one that speaks to a hub brings its own on loopback.
test: export HF_HUB_OFFLINE := 1
test:  ## pytest, then every notebook at scale smoke under nbval
	@$(IN) python -m pytest
	@$(IN) python tests/nbval_smoke.py

lab:  ## open the notebooks in JupyterLab
	@$(IN) python -m jupyterlab notebooks

lint:  ## ruff: rules and formatting
	@$(IN) sh -c 'ruff check . && ruff format --check .'

clean:  ## remove .venv, caches and what smoke and mini made (figures/mini and the runs of larger scales stay)
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf data/cache data/runs/smoke data/runs/mini figures/smoke
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
