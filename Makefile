# Caelum. `make up` starts a cloud on this machine; `make test` runs every level of tests.
VENV := .venv
PY := $(VENV)/bin/python
# Where Debian keeps what root uses, which not every shell's path has.
export PATH := $(PATH):/usr/sbin:/sbin

if_installed = if [ -x $(PY) ]; then $(PY) -m $(1); else echo "Nothing is installed here, so nothing runs from here."; fi

.PHONY: up down purge status cluster cluster-down demo demo-down bench bench-full install test check test-unit test-service test-postgresql test-cluster test-faults test-simulation test-ui test-lab lock format

up: install
	@$(PY) -m caelum.onemachine.up

down:
	@$(call if_installed,caelum.onemachine.down)

purge:
	@$(call if_installed,caelum.onemachine.down --purge)

status:
	@$(call if_installed,caelum.onemachine.status)

cluster:
	@tools/install cluster
	@$(PY) -m caelum.cluster.up

cluster-down:
	@$(call if_installed,caelum.cluster.down)

install:
	@tools/install up

check:
	@tools/install check
	@tools/check

test: check test-service test-cluster test-ui test-lab

test-unit:
	@tools/install check
	$(PY) -m pytest tests/unit -q

test-service:
	@tools/install check
	$(PY) -m pytest tests/service -q

# The same tests with a private PostgreSQL in the place of SQLite, which takes longer.
test-postgresql:
	@tools/install cluster
	CAELUM_TEST_DATABASE=postgresql $(PY) -m pytest tests/service -q

test-cluster:
	@tools/install cluster
	$(PY) -m pytest tests/cluster -q

# Each fault ROUNDS times, with pauses and partitions as long as in real life (FULL), into docs/reliability.md: FAULT=kill_a_node
# chooses some, as pytest's -k does. All of them a hundred times take days, one fault an hour or more.
ROUNDS ?= 100
FAULT ?= test
test-faults:
	@tools/install cluster
	ROUNDS=$(ROUNDS) FULL=1 CAELUM_RELIABILITY=docs/reliability.md $(PY) -m pytest tests/cluster/test_fault_*.py -q -s -k "$(FAULT)"

# Seeds of the simulation, from FIRST (1) on: for the night.
SEEDS ?= 1000
test-simulation:
	@tools/install cluster
	SEEDS=$(SEEDS) $(PY) -m caelum.testing.simulation

test-ui:
	@tools/install ui
	$(PY) -m pytest tests/ui -q

test-lab:
	@tools/install lab
	$(PY) -m pytest tests/lab -q

# Speed: a few minutes, or everything in up to an hour. Results are kept in bench/results/ and docs/performance.md.
bench:
	@tools/install check
	$(PY) bench/run.py

bench-full:
	@tools/install check
	$(PY) bench/run.py --full

# 1,000 simulated hosts and 10,000 VMs, beside anything else on this machine.
demo:
	@tools/install check
	@$(PY) bench/demo.py up

demo-down:
	@$(PY) bench/demo.py down

# The lock file pins every dependency by hash.
lock:
	@tools/install check
	$(VENV)/bin/uv pip compile -q pyproject.toml --all-extras --group dev --generate-hashes --no-emit-index-url \
		--no-header -o requirements/dev.lock

format:
	$(VENV)/bin/ruff format src tests bench tools examples
	$(VENV)/bin/ruff check --fix src tests bench tools examples
