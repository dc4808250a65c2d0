# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin/edgeflock

.PHONY: demo test lint pytest install

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(VENV)/bin/pip install --quiet -r requirements.txt
	$(VENV)/bin/pip install -qq -e '.[sumo,milvus,text,onnx]'
	touch $@

# Trains IDMAC and QMIX for a minute each, and compares them with the heuristics on the same episodes.
demo: $(INSTALLED)
	rm -rf demo
	$(RUN) train idmac --scenario vehicular/v50-e6 --env-steps 60000 --run demo/idmac
	$(RUN) train qmix --scenario vehicular/v50-e6 --env-steps 60000 --run demo/qmix
	$(RUN) compare --scenario vehicular/v50-e6 --episodes 32 --out demo/comparison \
	  --policies idmac=demo/idmac,qmix=demo/qmix,greedy,nearest-expert,least-loaded,random

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

pytest: $(INSTALLED)
	$(VENV)/bin/pytest -n 2 --dist loadfile --durations 25

test: $(INSTALLED)
	$(MAKE) --jobs 2 lint pytest  # at a time: types take a minute
