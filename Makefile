# The commands of a developer. On a bare Debian 12 machine each of them installs what it needs first.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := test
# A path of our own first: the parts call uv, salt and ruff by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The host's own certificates, as apt and git use them.
export UV_SYSTEM_CERTS := 1
# Salt's programs start four times as fast with their bytecode.
unexport PYTHONDONTWRITEBYTECODE
# No advertisement of the theme's at each build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: test test-all test-fast test-long test-crash test-hosts test-kitchen lint docs dist release demo demo-stop screenshots bench bench-scale bench-ship bench-peers setup setup-parts clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r pyproject.toml --group test --group docs
	@touch $@

# Services and libraries of the system: PostgreSQL, Redis, nginx, supervisor, git, Java.
setup-parts: setup
	@$(BIN)/python -m parts.system

# Tests wait for programs: a file at a time more than there are cores. The longest first: none is left over at the end.
WORKERS := $(shell echo $$(($$(nproc) + 1)))
LONGEST := $(patsubst %,test/%.py, integration/test_database integration/test_portal daemon/test_environments \
	daemon/test_jobs daemon/test_web daemon/test_front daemon/test_lock daemon/test_fleet daemon/test_groups)
OTHERS := $(filter-out $(LONGEST), $(wildcard test/daemon/test_*.py test/integration/test_*.py)) test/crash test/functional test/unit

test: setup-parts
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 -m "not long" \
		$(LONGEST) $(OTHERS)

# What waits for minutes by nature (hosts that are down, an upgrade of CKAN with its data, cron), and what shows once more
# on real daemons what cheaper tests show as well.
test-long: setup-parts
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations=0 -m long test/integration test/daemon

# Kills and full disks at all points, and not only in the sample that is part of `make test`: docs/reliability.md. POINT
# is the name of one of them.
test-crash: setup-parts
	@CRASH_POINTS=all $(BIN)/python -m pytest -q -n $(if $(POINT),0,2) --dist worksteal '$(or $(POINT),test/crash)'

# Unit and functional tests, but for those marked slow: no daemon, a minute.
test-fast: setup
	@$(BIN)/python -m pytest test/unit test/functional -q -m "not slow" -n $(WORKERS) --dist worksteal

# What is long by nature as well.
test-all: test test-long test-crash test-hosts

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/python tools/sizes.py
	@$(BIN)/python tools/settings_docs.py --check
	@$(BIN)/python tools/functions_docs.py --check
	@$(BIN)/python tools/english.py
	@$(BIN)/mkdocs build --quiet --strict
	@$(BIN)/mypy
	@PYTHONPATH=_utils $(BIN)/lint-imports

# The pages that are made from the code, and the manual as a site: site/index.html.
docs: setup
	@$(BIN)/python tools/settings_docs.py
	@$(BIN)/python tools/functions_docs.py
	@$(BIN)/mkdocs build --quiet --strict

# An archive for file_roots and a Salt extension, from the commit that is checked out: dist/.
dist: setup
	@$(BIN)/python tools/dist.py

# Version, changelog, commit and tag: make release VERSION=1.0.0. Pushes nothing. See docs/releasing.md.
release: setup
	@$(BIN)/python tools/release.py '$(VERSION)'

# A real CKAN on two web hosts: first deploy, deploy, failed deploy, rollback. DEMO_ONCE=1 ends by itself.
demo: setup-parts
	@$(BIN)/python test/demo.py

# Pictures of reports, maintenance page and manual, of the demo that ran last: docs/images.
screenshots: docs
	@$(BIN)/python test/screenshots.py

demo-stop: setup
	@$(BIN)/python test/demo.py stop

bench: setup-parts
	@$(BIN)/python test/bench/bench.py
	@$(BIN)/python test/bench/nine.py
	@$(BIN)/python test/bench/switches.py

# Deploys to 10, 20 and 50 minions on this machine: docs/scale.md. Twenty minutes.
bench-scale: setup-parts
	@$(BIN)/python test/bench/scale.py

# One host that builds for ten on this machine, against one alone: docs/benchmarks.md. Ten minutes.
bench-ship: setup-parts
	@$(BIN)/python test/bench/ship.py

# This formula, a playbook of Ansible and Capistrano deploy the same portal by turns: docs/benchmarks.md. WRITE=1 writes the
# table there; BENCH_ROUNDS and BENCH_HOSTS say how often, and on how many hosts. Three quarters of an hour.
bench-peers: setup-parts
	@$(BIN)/python test/bench/peers $(if $(WRITE),--write)

# Three Debian hosts in containers, with systemd, a network of their own, and a master on the first.
test-hosts: setup-parts
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --group hosts
	@$(BIN)/python test/hosts/run.py

# The suites of kitchen.yml on containers as those of test-hosts, by Test Kitchen: docs/development.md says what to install.
test-kitchen: setup-parts
	@$(BIN)/python test/hosts/kitchen.py $(SUITE)

clean:
	@rm -rf $(VENV) .pytest_cache .ruff_cache site dist
