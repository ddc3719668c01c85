"""The parts themselves: each starts, answers and stops."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from parts import base, process, solr, system
from parts.nginx import Nginx, host_nginx
from parts.ports import answers, free_port
from parts.postgres import Postgres
from parts.process import PartError, Service
from parts.redis import Redis
from parts.supervisor import Supervisor

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def packages():
    system.ensure_packages()


@pytest.fixture
def sandbox():
    path = process.sandbox()
    yield path
    process.stop_all(path)
    shutil.rmtree(path)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_postgres_answers_and_makes_databases(sandbox):
    postgres = Postgres(sandbox).start()
    assert postgres.sql("postgres", "select 1") == "1"
    postgres.create_database("ckan_default", "ckan_default", "it's secret")
    postgres.create_database("datastore_default", "ckan_default", "it's secret")
    command = ["psql", "-At", "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "ckan_default", "-c"]
    command += ["create table t (n int); select current_user", "ckan_default"]
    result = subprocess.run(
        command, env={**os.environ, "PGPASSWORD": "it's secret"}, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == ["CREATE TABLE", "ckan_default"], result.stderr
    wrong = subprocess.run(command, env={**os.environ, "PGPASSWORD": "no"}, capture_output=True, check=False)
    assert wrong.returncode != 0
    with pytest.raises(PartError, match="refused a statement"):
        postgres.sql("postgres", "selec 1")
    postgres.stop()
    assert Postgres(sandbox).start().sql("ckan_default", "select count(*) from t") == "0"


def test_redis_answers(sandbox):
    redis = Redis(sandbox).start()
    assert redis.ask("PING") == "+PONG"
    redis.stop()
    assert redis.ask("PING") == ""


def test_solr_has_a_core_with_the_schema_of_ckan(sandbox):
    core = solr.Solr(sandbox, solr.schema_of(base.build_base()))
    core.start()
    assert core.count() == 0
    status, text = get(f"{core.url}/schema/name")
    assert (status, '"name":"ckan' in text) == (200, True)


def test_nginx_in_front_of_a_host_without_sites_and_then_with_one(sandbox):
    sites = sandbox / "web1/etc/nginx/conf.d"
    host = host_nginx(sandbox, sites, name="web1-nginx").start()
    port = free_port()
    (sites / "site.conf").write_text(f"server {{ listen 127.0.0.1:{port}; return 200 'from the host'; }}\n")
    host.reload()
    upstream = f"upstream web {{ server 127.0.0.1:{port}; }}\n"
    front_port = free_port()
    server = f"server {{ listen 127.0.0.1:{front_port}; location / {{ proxy_pass http://web; }} }}\n"
    front = Nginx(sandbox, upstream + server, front_port, name="front").start()
    assert get(front.url) == (200, "from the host")
    (sites / "site.conf").write_text("nonsense;\n")
    with pytest.raises(PartError, match="nonsense"):
        host.reload()
    assert get(front.url) == (200, "from the host")


def test_supervisor_runs_the_programs_of_its_directory(sandbox):
    programs = sandbox / "web1/etc/supervisor/conf.d"
    supervisor = Supervisor(sandbox, programs, name="web1-supervisor").start()
    port = free_port()
    (programs / "one.conf").write_text(
        f"[program:one]\ncommand = /usr/bin/python3 -m http.server {port} --bind 127.0.0.1\nstartsecs = 1\n"
        f"directory = {sandbox}\n"
    )
    assert "one: added process group" in supervisor.ctl("update")
    deadline = time.monotonic() + 20
    while not ("RUNNING" in supervisor.ctl("status", "one") and answers(port)):
        assert time.monotonic() < deadline, supervisor.ctl("status", "one")
        time.sleep(0.2)
    supervisor.stop()
    assert not answers(port)


def test_another_process_stops_only_what_was_started_here(sandbox):
    redis = Redis(sandbox).start()
    stranger = subprocess.Popen(["sleep", "60"])
    # A record of a process that has ended and whose pid was given to someone else.
    old = Service(sandbox, "old")
    old.record.write_text(json.dumps({"pid": stranger.pid, "start": "1", "signal": 15, "at": 0}))
    code = f"from parts.process import stop_all; print(stop_all({str(sandbox)!r}))"
    test = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=test, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "['redis']", result.stderr
    assert redis.pid() == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_part_that_cannot_start_says_why(sandbox):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broken = Nginx(sandbox, f"server {{ listen 127.0.0.1:{port}; }}", port, name="broken")
        with pytest.raises(PartError, match="(?s)broken ended with exit code 1.*Address already in use"):
            broken.start()
    silent = Service(sandbox, "silent")
    with pytest.raises(PartError, match="(?s)not ready after 1 s.*still thinking"):
        silent.launch(["sh", "-c", "echo still thinking; exec sleep 60"], lambda: False, timeout=1)
    assert silent.pid() == 0
