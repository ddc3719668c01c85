"""A plain stand-in for Salt's master behind the fleet (`ckan_deploy.fleet.master.Master`); its hosts do as told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet.master import Answer
from ckan_deploy.system import version

FIRST, SECOND = "20260101000001Z", "20260101000002Z"
JOB = "20260101120000000000"
LAYER = "0123456789abcdef"
FACTS = {"system": "debian 12", "architecture": "x86_64", "libc": "glibc 2.36", "Python": "3.11"}


class FakeMaster:
    """
    A master without Salt. `pillars` is what each accepted minion's pillar says, `answers` what functions say instead of
    the hosts below: a value, or a function of the host and its arguments that may raise `FormulaError`.
    """

    def __init__(self, place: Path, hosts: Sequence[str] = ("web1", "web2"), groups: Mapping[str, str] = {}) -> None:
        self.cachedir, self.keyring, self.user = str(place / "master"), str(place / "k"), "ann"
        self.pillars: dict[str, dict[str, Any]] = {
            host: {"ckan": {"env": "production", "deploy_group": groups.get(host, "")}} for host in hosts
        }
        self.remembered: dict[str, dict[str, Any]] = {}
        # Pillars that render only where encrypted values may stay so.
        self.encrypted: dict[str, dict[str, Any]] = {}
        self.own: dict[str, Any] = {}
        self.sources = {"_modules/ckan_x.py": b"x"}
        self.answers: dict[str, Any] = {}
        self.down: set[str] = set()
        self.stopped = False
        # What was asked, what was told on the bus, what is heard there.
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.fired: list[tuple[str, dict[str, Any]]] = []
        self.heard: list[tuple[str, dict[str, Any]] | None] = []
        # The hosts: what each is on, and what it was on before.
        self.current = dict.fromkeys(hosts, FIRST)
        self.older: dict[str, str] = {}
        self.changes = ["ckanext-mycity changed"]
        # With build:ship: what each host is and which layers it has, the files of minions, what the master lacks.
        self.facts: dict[str, dict[str, str]] = {}
        self.layers: dict[str, list[str]] = {}
        self.pushed: set[tuple[str, str]] = set()
        self.handing_over = ""
        self.remarks: list[str] = []
        self.elsewhere = {"kind": "elsewhere", "path": "", "serves": True, "mark": "", "problem": ""}
        self.storage: dict[str, dict[str, Any]] = {}

    def minions(self) -> list[str]:
        return list(self.pillars)

    def pillar(self, minion: str, must_decrypt: bool = True) -> Mapping[str, Any]:
        return self.pillars[minion] if must_decrypt else self.encrypted.get(minion, {})

    def remembered_pillar(self, minion: str) -> Mapping[str, Any]:
        return self.remembered.get(minion, {})

    def own_pillar(self) -> Mapping[str, Any]:
        return self.own

    def ask(self, hosts: Sequence[str], function: str, kwargs: Mapping[str, Any], timeout: int) -> Iterator[Answer]:
        if self.stopped:
            raise FormulaError("the master does not take jobs (no route); start salt-master")
        for host in hosts:
            self.asked.append((function, host, dict(kwargs)))
            if host not in self.down:
                yield self._answer(host, function, kwargs)

    def fire(self, data: Mapping[str, Any], tag: str) -> None:
        if self.stopped:
            raise OSError("no bus")
        self.fired.append((tag, dict(data)))

    @contextlib.contextmanager
    def listen(self) -> Iterator[Callable[[int], Any]]:
        yield lambda wait: self.heard.pop(0) if self.heard else None

    def files(self) -> dict[str, bytes]:
        return self.sources

    def forget_pushed(self, minion: str, folder: str) -> None:
        self.pushed.discard((minion, folder))

    def ship(self, **build: Any) -> None:
        """Have one host build for all."""
        for pillar in self.pillars.values():
            pillar["ckan"]["build"] = {"ship": True, **build}

    def told(self, function: str) -> list[tuple[str, dict[str, Any]]]:
        """Return which hosts were asked for something, with what arguments."""
        return [(host, kwargs) for asked, host, kwargs in self.asked if asked == function]

    def functions(self) -> list[str]:
        """Return what was asked, each run of the same function once."""
        names = [function for function, _, _ in self.asked]
        return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]

    def _answer(self, host: str, function: str, kwargs: Mapping[str, Any]) -> Answer:
        given = self.answers.get(function, getattr(self, f"_{function.replace('.', '_')}", None))
        if given is None:
            return Answer(host, f"'{function}' is not available.", 254)
        try:
            value = given(host, **kwargs) if callable(given) else given
        except FormulaError as exc:
            return Answer(host, f"ERROR: {exc}", 1)
        return value if isinstance(value, Answer) else Answer(host, value)

    def _ckan_plan_ready(self, host: str) -> dict[str, Any]:
        return {"modules": version.digest(self.sources), "time": time.time()}

    def _ckan_release_plan(self, host: str, release: str, resolve: bool, **about: Any) -> dict[str, Any]:
        place = {
            "place": host, "sees_lock": True, "disk": {"free_mb": 100, "needed_mb": 4}, "prunes": [],
            "storage": self.storage.get(host, self.elsewhere),
        }  # fmt: skip
        ships = self.pillars[host]["ckan"].get("build", {}).get("ship")
        if ships:
            place |= {"facts": {**FACTS, **self.facts.get(host, {})}, "layers": self.layers.get(host, [])}
            place["layer"] = LAYER
        told = {
            "release": release,
            "current": self.current.get(host, ""),
            "own_changes": [],
            "own_remarks": [],
            "host": place,
        }
        if not resolve:
            return {**told, "changes": [], "remarks": [], "contents": {}, "extensions": {}}
        what = {"contents": {"extensions": {"ckanext-mycity": "abc"}}, "extensions": {"ckanext-mycity": "main abc"}}
        if ships:
            what["contents"]["base"] = {"ckan": "2.12.0", "python": "3.11"}
        return {**told, **what, "changes": self.changes, "remarks": self.remarks}

    def _ckan_release_show(self, host: str, release: str = "", lock: bool = False) -> dict[str, Any]:
        commit = {"kind": "git", "url": "https://git.example.org/mycity.git", "ref": "main", "commit": "a" * 40}
        return {
            "id": release or self.current[host], "state": "live", "env": "staging", "plugins": ["mycity"],
            "base": {"ckan": "2.12.0", "python": "3.11", "path": "/usr/lib/ckan/default"},
            "extensions": {"ckanext-mycity": commit}, "packages": {"babel": "2.1", "ckanext-mycity": "1.0"},
        }  # fmt: skip

    def _ckan_release_build(self, host: str, **about: Any) -> dict[str, Any]:
        return {"layer": LAYER}

    def _ckan_release_pack(self, host: str, release: str, layer: bool, **about: Any) -> dict[str, Any]:
        self.pushed.add((host, "ckan-ship/production"))
        return {"shipped": {"host": host}, "contents": {"packed": release}}

    def _ckan_release_clone(self, host: str, **about: Any) -> dict[str, Any]:
        return {"cloned": LAYER}

    def _ckan_release_prune(self, host: str, **about: Any) -> list[str]:
        return []

    _ckan_release_verify = _ckan_release_finish = _ckan_release_build

    def _ckan_release_start(self, host: str, **about: Any) -> dict[str, Any]:
        return {"started": True}

    def _ckan_release_end_standby(self, host: str, release: str) -> list[str]:
        return [release]

    def _ckan_release_check(self, host: str, **about: Any) -> dict[str, Any]:
        return {"migrates": True}

    def _ckan_release_migrate(self, host: str, **about: Any) -> dict[str, Any]:
        return {"migrated": False, "migration": {}}

    def _ckan_release_activate(self, host: str, release: str, **about: Any) -> dict[str, Any]:
        self.older[host], self.current[host] = self.current[host], release
        return {"current": release}

    def _ckan_release_rollback(self, host: str, to: str, **about: Any) -> dict[str, Any]:
        return self._ckan_release_activate(host, to)

    def _ckan_release_abort(self, host: str, release: str, **about: Any) -> dict[str, Any]:
        if self.current.get(host) == release:
            self.current[host] = self.older[host]
        return {"current": self.current.get(host, ""), "removed": True}

    def _ckan_release_rollback_target(self, host: str, to: str, force: bool, about: bool) -> dict[str, str]:
        return {"current": self.current[host], "target": to or FIRST}

    def _ckan_release_contents(self, host: str, release: str) -> dict[str, Any]:
        return {"extensions": {"ckanext-mycity": release}}

    def _ckan_release_status(self, host: str, processes: bool = False) -> dict[str, Any]:
        release = self.current[host]
        last = {"stage": "finish", "result": "ok", "at": "2026-01-01T00:00:00Z"}
        told = {"current": release, "serving": [release], "answers": release}
        return {**told, "services": [], "workers": {}, "last": last}

    def _ckan_schema_way_back(self, host: str, **about: Any) -> dict[str, Any]:
        return {"downgrade": False, "restore": "", "different": {}, "maintenance": False}

    def _ckan_schema_downgrade(self, host: str, **about: Any) -> dict[str, Any]:
        return {"kept_as": ""}

    def _ckan_schema_upgrade(self, host: str, **about: Any) -> dict[str, Any]:
        return {}

    def _ckan_schema_give_back(self, host: str, **about: Any) -> dict[str, Any]:
        return {"kept_as": "ckan_default_old"}

    def _ckan_index_rebuild(self, host: str, **about: Any) -> dict[str, Any]:
        return {"rebuilt": True, "why": "the schema changed", "index": {"hash": "1"}}

    def _ckan_maintenance_on(self, host: str, **about: Any) -> dict[str, Any]:
        return {"on": True, "changed": True}

    def _ckan_maintenance_off(self, host: str, **about: Any) -> dict[str, Any]:
        return {"on": False, "changed": True}
