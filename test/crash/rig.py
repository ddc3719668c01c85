"""
A host for crash tests: real but for CKAN itself (test/stub) and the web servers. Its root stands on a disk in memory,
in states that are made once and brought back for each point.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ckan_deploy.deploy import adopt, deploy, prune, rollback, stages
from ckan_deploy.releases import choice, lock
from ckan_deploy.releases.ids import ID_PATTERN
from ckan_deploy.releases.site import Site
from crash import kill
from fakes import REPO, FakeHost
from functional.steps import extension
from parts.base import uv_path
from stub import repos

# Releases of the states, the one that is built, and those that come after a kill.
FIRST, SECOND, THIRD, FOURTH, FIFTH = (f"2026010100000{number}Z" for number in range(1, 6))
NEXT = "20260102000000Z"
ADOPTED, OTHER = "20200101000000Z", "20200101000001Z"
DATABASE, SESSION, TOKEN = "a-password-of-the-database", "a-secret-of-sessions", "a-secret-of-tokens"
# What is nobody's of ours, and where it stands.
FOREIGN = {
    "usr/lib/ckan/releases/other-tool/keep": "a tool's", "usr/lib/ckan/releases/20190101000000Z/keep": "no manifest",
    "usr/lib/ckan/releases/.new-notes": "no release", "usr/lib/ckan/shared/notes.txt": "an operator's",
    "usr/lib/ckan/shared/sources/notes.txt.gone": "theirs", "usr/lib/ckan/shared/work/theirs/keep": "theirs",
    "usr/lib/ckan/current.before": "theirs", "var/lib/ckan/default/storage/upload": "a user's",
    "var/backups/ckan/default/mine.dump": "a dump", "tmp/theirs/keep": "theirs", "tmp/ckan-notes": "theirs",
}  # fmt: skip
# Where names are by chance or by content: of these it is only told what looks like a draft.
OPAQUE = {
    re.compile(r"usr/lib/ckan/shared/packages/(.*)"): re.compile(r"(^|/)\.tmp"),
    re.compile(r"usr/lib/ckan/shared/resolutions/(.*)"): re.compile(r"\.tmp$"),
    re.compile(r"usr/lib/ckan/shared/mirrors/[^/]+\.git/(.*)"): re.compile(r"(^|/)tmp|\.lock$|(^|/)incoming-"),
    re.compile(r"usr/lib/ckan/.*/\.git/(.*)"): re.compile(r"(^|/)tmp|\.lock$"),
}
WRITTEN = re.compile(r"usr/lib/ckan/shared/installed/[0-9a-f]{16}\.json")
PATCH = """\
--- a/ckan/exceptions.py
+++ b/ckan/exceptions.py
@@ -1,1 +1,2 @@
+# patched here
 {line}
"""


class Rig:
    """The host. ``root`` is its root directory, ``host`` what stands for Salt's minion."""

    def __init__(self, top: Path) -> None:
        self.top, self.root, self.origins = top, top / "host", top / "origins"
        self.base = top / "base"
        for command in (
            [uv_path(), "venv", "-q", "-p", "/usr/bin/python3", self.base],
            [uv_path(), "pip", "install", "-q", "-p", self.base / "bin/python", REPO / "test/stub/ckan"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        self.repo = repos.make_repo(self.origins, "mycity", "Hello one", backend="uv_build")
        files = top / "files"
        files.mkdir()
        line = (REPO / "test/stub/ckan/ckan/exceptions.py").read_text().splitlines()[0]
        (files / "core.patch").write_text(PATCH.format(line=line))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", top / "key"], check=True)
        self.key = (top / "key").read_text()
        self.host = FakeHost({"ckan": self._pillar()}, (files,))
        self._states: dict[str, Callable[[], None]] = {
            "bare": self._bare, "two": self._two, "checked": self._checked, "switched": self._switched,
            "many": self._many, "virtualenv": self._virtualenv,
        }  # fmt: skip

    def _pillar(self) -> dict[str, Any]:
        about = {**extension(self.repo), "deploy_key": self.key}
        return {
            "env": "production", "root": str(self.root), "build_user": "nobody", "paths": {"base": str(self.base)},
            "site_url": "http://portal.example.org", "database": {"password": DATABASE},
            "secrets": {"session": SESSION, "api_token": TOKEN}, "web": {"server": "none", "app": "none"},
            "manage": {"packages": False, "services": False, "user": False}, "installer": {"uv": uv_path()},
            "config": {}, "extensions": {"ckanext-mycity": about}, "plugins": ["mycity"], "keep": 2, "disk_free_mb": 0,
            "patches": ["salt://core.patch"],
        }  # fmt: skip

    @property
    def home(self) -> Path:
        return self.root / "usr/lib/ckan"

    def site(self, **changes: Any) -> Site:
        host = FakeHost({"ckan": {**self.host.pillar["ckan"], **changes}}, ())
        host.file_roots = self.host.file_roots
        return Site.of(host)

    def run(
        self, work: Callable[[Site], Any], at: int = 0, together: bool = False, env: dict[str, str] | None = None
    ) -> kill.Running:
        """Do something on this host in a process of its own; parameters as for ``kill.Running``, and its variables."""

        def inside() -> Any:
            # Where programs and Python put what they make for a moment.
            os.environ.update(env or {}, TMPDIR=str(self.root / "tmp"))
            tempfile.tempdir = str(self.root / "tmp")
            return work(self.site())

        return kill.Running(inside, at, together)

    def done(self, work: Callable[[Site], Any]) -> Any:
        """Do something on this host, undisturbed."""
        running = self.run(work)
        ended = running.wait()
        running.settle()
        assert not ended.said, ended.said
        return ended

    # States

    def bring(self, name: str) -> None:
        """Bring the host into a state: one of those of ``__init__``."""
        saved = self.top / "states" / name
        if not saved.exists():
            saved.parent.mkdir(exist_ok=True)
            self._states[name]()
            subprocess.run(["cp", "-a", self.root, saved], check=True)
            return
        self.clear()
        subprocess.run(["cp", "-a", saved, self.root], check=True)

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def _bare(self) -> None:
        self.clear()
        for folder in ("tmp", "var/lib/ckan/default/storage"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "tmp").chmod(0o1777)
        shutil.chown(self.root / "var/lib/ckan/default/storage", "www-data", "www-data")
        for name, text in FOREIGN.items():
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def _two(self) -> None:
        self.bring("bare")
        self.done(lambda site: deploy.deploy(lambda: site, FIRST))
        repos.commit_change(self.repo, "Hello two")
        self.done(lambda site: deploy.deploy(lambda: site, SECOND))
        repos.commit_change(self.repo, "Hello six")

    def _checked(self) -> None:
        self.bring("two")
        self.done(lambda site: (stages.build(site, THIRD), stages.check(site, THIRD)) and None)

    def _switched(self) -> None:
        self.bring("checked")
        self.done(lambda site: (stages.start(site, THIRD), stages.activate(site, THIRD)) and None)

    def _many(self) -> None:
        self.bring("two")
        for release in (THIRD, FOURTH):
            self.done(lambda _, release=release: deploy.deploy(lambda: self.site(keep=9), release))
        self.done(lambda site: stages.build(site, FIFTH) and site.releases.set_state(FIFTH, "failed") and None)

    def _virtualenv(self) -> None:
        """Two virtualenvs that something else has built: one where releases are, one elsewhere."""
        self.bring("two")
        for place in (self.home / "releases" / ADOPTED, self.root / "srv/portal"):
            place.parent.mkdir(exist_ok=True)
            for command in (
                [uv_path(), "venv", "-q", "-p", "/usr/bin/python3", place],
                [uv_path(), "pip", "install", "-q", "-p", place / "bin/python", REPO / "test/stub/ckan"],
            ):
                subprocess.run(command, check=True, capture_output=True)
            # uv's own, which all may write to: the one elsewhere has it, and so it is copied first.
            if place.name == ADOPTED:
                (place / ".lock").unlink()
            (place / "ckan.ini").write_text(f"[app:main]\nckan.plugins = \nbeaker.session.secret = {SESSION}\n")

    # What holds

    def broken(self, releases: dict[str, set[str]]) -> list[str]:
        """What must never be: said of the host right after a kill. ``releases`` are those that were whole before."""
        said = [f"{name} is gone or changed" for name in FOREIGN if _text(self.root / name) != FOREIGN[name]]
        site = self.site()
        if busy := lock.busy(site):
            said.append(f"a lock is left: {busy}")
        link, current = self.home / "current", site.releases.current()
        if releases and not current:
            said.append(f"current is {os.readlink(link) if link.is_symlink() else 'gone'}")
        if os.path.lexists(link) and not current:
            said.append("current leads to no release")
        if current:
            state = site.releases.read(current).state
            if state not in ("checked", "live", "retired", "bad"):
                said.append(f"current is {state}")
            missing = releases.get(current, set()) - self.inside(current)
            if missing or not {"bin/python", "production.ini", "release.json"} <= self.inside(current):
                said.append(f"current lacks {sorted(missing)[:3]}")
        return said

    def inside(self, release: str) -> set[str]:
        """The names in a release."""
        top = self.home / "releases" / release
        return {os.path.relpath(os.path.join(folder, name), top) for folder, _, names in os.walk(top) for name in names}

    def whole(self) -> dict[str, set[str]]:
        """The releases that can serve, and what is in them."""
        good = [m.id for m in self.site().releases.manifests() if m.state in (*choice.GOOD, "checked")]
        return {release: self.inside(release) for release in good}

    def tree(self) -> dict[str, int]:
        """All names on the host, with ids and hashes by a word for them, and the sizes of files of releases."""
        found: dict[str, int] = {}
        for name, status in self._walk():
            if any(
                (inner := place.fullmatch(name)) and not drafts.search(inner[1]) for place, drafts in OPAQUE.items()
            ):
                continue
            plain = re.sub(r"[0-9a-f]{40}", "COMMIT", self._of_tree(name))
            sized = name.endswith(".py") and "/releases/" in name
            plain = ID_PATTERN.sub(lambda match: match[0] if match[0] == NEXT else "ID", plain)
            found[plain] = max(status.st_size if sized else 0, found.get(plain, 0))
        return found

    def _of_tree(self, name: str) -> str:
        """What is written down of a shared tree has the name of that tree, as long as there is one."""
        if not WRITTEN.fullmatch(name):
            return name
        tree = json.loads((self.root / name).read_text())["tree"]
        return f"written down of {os.path.relpath(tree, self.root)}" if os.path.isdir(tree) else name

    def used(self) -> int:
        """
        The disk that all of it takes, in KB, but for the releases and the checkouts of their commits: after a kill they
        are other ones, and ``tree`` has the names in them.
        """
        known = self.site().releases.manifests()
        commits = {pin.commit for m in known if m.resolution for pin in m.resolution.pins() if pin.commit}
        theirs = re.compile("|".join(["/releases/ID/", *(f"/sources/[0-9a-f]+/{commit}" for commit in commits)]))
        kept = {m.id for m in known}
        blocks = {
            (status.st_dev, status.st_ino): status.st_blocks
            for name, status in self._walk()
            if not theirs.search(ID_PATTERN.sub(lambda match: "ID" if match[0] in kept else match[0], name))
        }
        return sum(blocks.values()) // 2

    def secrets(self) -> set[str]:
        """Where a secret stands, as ``tree`` names files."""
        words = [DATABASE, SESSION, TOKEN, *self.key.splitlines()[1:-1]]
        found = set()
        for name, status in self._walk():
            path = self.root / name
            if path.is_symlink() or not path.is_file() or status.st_size > 2**20:
                continue
            text = path.read_bytes()
            if any(word.encode() in text for word in words):
                found.add(f"{ID_PATTERN.sub('ID', name)} {status.st_mode & 0o777:o}")
        return found

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        for folder, folders, names in os.walk(self.root):
            for name in (*folders, *names):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, self.root), os.lstat(path)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def next_deploy(site: Site) -> Any:
    """What an operator types after a crash."""
    return deploy.deploy(lambda: site, NEXT)


def _adopt(site: Site, name: str, release: str) -> None:
    adopt.adopt(site, name, release)


# What is killed: the state that it begins in, the work, and how many points of it there are.
WORK: dict[str, tuple[str, Callable[[Site], Any], int]] = {
    "first-deploy": ("bare", lambda site: deploy.deploy(lambda: site, THIRD), 70),
    "deploy": ("two", lambda site: deploy.deploy(lambda: site, THIRD), 100),
    "build": ("two", lambda site: stages.build(site, THIRD) and None, 90),
    "check": ("checked", lambda site: stages.check(site, THIRD) and None, 10),
    "start": ("checked", lambda site: stages.start(site, THIRD), 12),
    "activate": ("checked", lambda site: stages.activate(site, THIRD), 30),
    "finish": ("switched", lambda site: stages.finish(site, THIRD), 60),
    "rollback": ("two", lambda site: rollback.rollback(site, reason="no"), 36),
    "abort": ("checked", lambda site: stages.abort(site, THIRD, "no"), 40),
    "abort-live": ("switched", lambda site: stages.abort(site, THIRD, "no"), 40),
    "prune": ("many", lambda site: prune.prune(site), 40),
    "adopt": ("virtualenv", lambda site: _adopt(site, f"{site.settings.root}/srv/portal", OTHER), 30),
    "adopt-in-place": ("virtualenv", lambda site: _adopt(site, ADOPTED, ""), 10),
}  # fmt: skip
