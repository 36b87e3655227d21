# Every task of this repository. CI runs these same tasks: .ci/run is `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TOOLS  := mosquitto mosquitto_pub curl openssl npm   # tests talk to the gateway with what people use
DEBIAN := mosquitto mosquitto-clients curl openssl $(if $(shell command -v npm),,nodejs npm)

.DEFAULT_GOAL := help
.PHONY: help demo test check format soak bench clean debian

help:                ## list the tasks
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run   ## the whole system on this machine, in half a minute: agents, gateway, cloud services, an intruder
	$(BIN)/gateway demo

test: check debian tests/support/mqttjs/node_modules ## everything CI runs: check, then all tests
	$(BIN)/python -m pytest -n 4 $(ARGS)

check: $(VENV)/.dev  ## format, lint, types, import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(VENV)/.dev debian tests/support/mqttjs/node_modules ## the crash, fuzz and fault tests with larger numbers (two hours and more)
	SOAK=40 $(BIN)/python -m pytest -m soak --timeout 7200 $(ARGS)

bench: $(VENV)/.dev debian ## measure against peers and floors, about nine minutes; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/all.py --json benchmarks/results.json --results benchmarks/RESULTS.md $(ARGS)

debian:
	@PATH=$$PATH:/usr/sbin; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing=1; done; \
	test -z "$$missing" || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(DEBIAN) >/dev/null; \
	  else echo "the tests need the Debian package: $(DEBIAN)" >&2; exit 1; fi; }

tests/support/mqttjs/node_modules: tests/support/mqttjs/package-lock.json | debian
	npm ci --prefix tests/support/mqttjs --no-audit --no-fund --silent
	@touch $@

clean:               ## remove what make made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache tests/support/mqttjs/node_modules
