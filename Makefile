# osgprod. `make` lists what there is to make.
SHELL := /bin/bash
PORT ?= 8080
FUZZ_S ?= 600
# Of the tests: many wait, for an answer or a process, so there are more than processors.
JOBS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 2 )))
COVERAGE ?= 91
PG_BINDIRS ?= $(wildcard /usr/lib/postgresql/*/bin)
PG_TESTS ?=
PYTHON ?= python3
BIN := .venv/bin
SHELL_FILES := worker/osgprod_work.bash worker/osgprod_merge.bash condor/osgprod_exec.sh worker/lib/make-scripts .ci/run tests/browser/have-chromium
SHELL_PARTS := $(wildcard worker/lib/*.bash condor/lib/*.bash)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo serve migrate test test-slow test-all-postgres coverage test-browser screenshots test-grid test-ha test-root fuzz soak bench bench-grid docs release-sql scripts lint format lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 # /p' Makefile | column -t -s '#'

setup: .venv/ready ## the virtual environment with the pinned packages of the product
setup-dev: .venv/ready-dev

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.txt
	@touch $@

demo: .venv/ready ## the whole story, from three new EVIO files to every event processed once
	@$(BIN)/python -m shim.local.demo

serve: .venv/ready ## the shim on 127.0.0.1, PORT=8080; without OSGPROD_DSN on its own PostgreSQL
	@exec $(BIN)/osgprod serve --port $(PORT)

migrate: .venv/ready ## bring the database that OSGPROD_DSN or libpq's variables name up to date
	@$(BIN)/osgprod migrate

test: .venv/ready-dev ## the test suite, on a real PostgreSQL
	$(BIN)/python -m pytest -q -p tests.tidy -n $(JOBS) --dist worksteal

test-slow: .venv/ready-dev ## what takes minutes: commands of documents, benchmarks, and more rounds of what make test does
	$(BIN)/python -m pytest -q -p tests.tidy -m slow -n $(JOBS) --dist worksteal

test-all-postgres: .venv/ready-dev ## the suite on each PostgreSQL here: the wheel's, and PG_BINDIRS; PG_TESTS=tests/sql for a part
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal $(PG_TESTS)
	@for programs in $(PG_BINDIRS); do \
	  echo "== $$programs"; "$$programs/postgres" --version || exit 1; \
	  OSGPROD_PG_BINDIR="$$programs" $(BIN)/pytest -q -n $(JOBS) --dist worksteal $(PG_TESTS) || exit 1; \
	done
	$(BIN)/pytest -q -m grid tests/grid/test_migrate.py

.venv/ready-browser: .venv/ready-dev requirements-browser.txt
	$(BIN)/pip install --quiet --require-hashes -r requirements-browser.txt
	@touch $@

coverage: .venv/ready-dev ## the test suite, and how much of shim/ it runs, in subprocesses too; fails below COVERAGE %
	rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run -m pytest -q -p tests.tidy -n $(JOBS) --dist worksteal
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=$(COVERAGE)

test-browser: .venv/ready-browser ## the tests of the dashboard in a real Chromium; names what it lacks
	@tests/browser/have-chromium
	$(BIN)/pytest -q -m browser tests/browser

screenshots: .venv/ready-browser ## remake the pictures in docs/images
	@tests/browser/have-chromium
	OSGPROD_SCREENSHOTS=1 $(BIN)/pytest -q -m browser tests/browser -k pictures

test-grid: .venv/ready-dev ## HTCondor, XRootD, Apache for real (PART=condor ... for one); names what it lacks
	$(BIN)/pytest -q -m grid --maxfail=5 $(if $(PART),tests/grid/test_$(PART).py,tests/grid)

.root/ready: .venv/ready-dev requirements-root.txt
	$(BIN)/pip install --quiet --upgrade --no-deps --target .root --require-hashes -r requirements-root.txt
	@touch $@

test-root: .root/ready ## merges with ROOT's own hadd and GlueX's HDDM library (downloads 270 MB)
	$(BIN)/pytest -q -m grid --maxfail=3 tests/grid/test_merge_programs.py

.ha/ready: .venv/ready-dev requirements-ha.txt
	$(BIN)/pip --python /usr/bin/python3 install --quiet --upgrade --target .ha --require-hashes -r requirements-ha.txt
	@touch $@

test-ha: .ha/ready ## failover with Patroni and etcd for real; names what it lacks
	$(BIN)/pytest -q -s -m ha --maxfail=3 tests/ha

fuzz: .venv/ready-dev ## odd requests and broken files for 10 minutes each, FUZZ_S=600
	FUZZ_S=$(FUZZ_S) $(BIN)/pytest -q -s tests/security/test_fuzz.py

soak: .venv/ready-dev .ha/ready ## what make test does for seconds, for minutes: everything at once, any sequence of calls, chaos
	OSGPROD_SOAK_S=60 OSGPROD_STATE_MACHINE_S=300 $(BIN)/pytest -q -s tests/whole
	OSGPROD_CHAOS_S=600 $(BIN)/pytest -q -s tests/worker/test_chaos.py
	OSGPROD_HA_ROUNDS=10 $(BIN)/pytest -q -s -m ha tests/ha

.venv/ready-peers: .venv/ready-dev requirements-peers.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-peers.txt
	@touch $@

bench: .venv/ready-peers ## speed as ratios against bounds of the same run, into bench/results.json
	$(BIN)/python -m bench.run

bench-grid: .venv/ready-dev ## a production on a simulated grid of 1,000 nodes, in simulated time, into docs/performance.md
	$(BIN)/python -m bench.grid

docs: .venv/ready-dev ## what documents have from the code: docs/sql.md, and the tables between <!-- markers -->
	$(BIN)/python docs/generate_sql.py
	$(BIN)/python docs/generate_tables.py

release-sql: .venv/ready ## the snapshot of sql/functions for this version, among the migrations
	@$(BIN)/python -m sql.release

scripts: ## build the shipped job scripts from their parts in worker/lib and condor/lib
	@worker/lib/make-scripts

lint: .venv/ready-dev ## ruff, mypy, who imports whom, spelling, shellcheck, shfmt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo >/dev/null || $(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/codespell
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/shellcheck $(SHELL_FILES)
	@# A part sets what other parts read: SC2034, SC2154; the built files are checked for both.
	$(BIN)/shellcheck -s bash -e SC2034,SC2154 $(SHELL_PARTS)
	$(BIN)/shfmt -i 2 -d $(SHELL_FILES) $(SHELL_PARTS)

format: .venv/ready-dev ## make the sources look as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/shfmt -i 2 -w $(SHELL_PARTS)
	worker/lib/make-scripts
	$(BIN)/shfmt -i 2 -w $(SHELL_FILES)

lock: .venv/ready-dev ## pin the newest versions that pyproject.toml allows
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --extra dev pyproject.toml -c requirements.txt -o requirements-dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --extra browser pyproject.toml -c requirements-dev.txt -o requirements-browser.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --extra notify pyproject.toml -c requirements-dev.txt -o requirements-notify.txt
	printf 'patroni[etcd3,psycopg3]>=4.1,<5\n' | $(BIN)/uv pip compile -q --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-emit-index-url - -o requirements-ha.txt
	printf 'root==0.1a12\ngluex-hddm-s==2.5.17\n' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-deps \
	    --prerelease allow --generate-hashes --no-header --no-emit-index-url - -o requirements-root.txt

clean: ## remove the virtual environment and the embedded server's data
	rm -rf .venv .ha .root .osgprod *.egg-info
