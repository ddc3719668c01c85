"""What all contestants deploy: three small extensions from git with a requirement each, wheels, and an ini."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from parts import base
from parts.process import run
from stub import repos

# Each with a requirement of its own that CKAN does not have.
REQUIREMENTS = {"trees": "natsort==8.4.0", "parks": "humanize==4.9.0", "benches": "inflection==0.5.1"}
# What the tools install with, and what builds that are kept apart start from.
PIP, SETUPTOOLS = "pip==25.3", "setuptools==80.9.0"
MARK = "/mark-of-the-release"

_PLUGIN = '''\
"""A page that tells which commit this is."""

import flask

from ckan import plugins

TEXT = {text!r}


class Plugin(plugins.SingletonPlugin):
    """Adds the page."""

    plugins.implements(plugins.IBlueprint)

    def get_blueprint(self):
        pages = flask.Blueprint({name!r}, __name__)
        pages.add_url_rule({path!r}, "mark", lambda: TEXT)
        return pages
'''


class Origins:
    """The git repositories of the extensions.

    place
        Directory that they are made in.
    """

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True)
        self.repos = {
            name: repos.make_repo(place, name, "first", requirements=[wanted]) for name, wanted in REQUIREMENTS.items()
        }
        for name in self.repos:
            self._write(name, "first")

    def commit(self, text: str) -> None:
        """Commit another text to the extension whose page is asked for."""
        self._write(next(iter(self.repos)), text)

    def _write(self, name: str, text: str) -> None:
        repo = self.repos[name]
        path = MARK if name == next(iter(self.repos)) else f"{MARK}-{name}"
        plugin = _PLUGIN.format(text=f"{name} {text}", name=name, path=path)
        (repo / f"ckanext/{name}/plugin.py").write_text(plugin, encoding="utf-8")
        repos.git(repo, "commit", "--quiet", "--all", "--message", f"Say {text}")


def wheelhouse() -> Path:
    """Return the directory with the wheels of all requirements, downloaded once."""
    place = base.CACHE / "peers-wheels"
    marker, wanted = place / "complete", " ".join((*REQUIREMENTS.values(), PIP, SETUPTOOLS))
    with base.alone(place):
        if not (marker.exists() and marker.read_text(encoding="utf-8") == wanted):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            run([*command, "-d", place, *wanted.split()], "Downloading wheels", place.with_name("peers-wheels.log"))
            marker.write_text(wanted, encoding="utf-8")
    return place


def default_virtualenv(official: Path, path: Path, wheels: Path) -> Path:
    """Copy the official install to a path of its own, and put pip in, which Debian's package of CKAN has."""
    subprocess.run(["cp", "-a", official, path], check=True)
    scripts = [file for file in (path / "bin").iterdir() if file.is_file() and not file.is_symlink()]
    for script in scripts:
        content = script.read_bytes()
        if content.startswith(b"#!") or script.name.startswith("activate"):
            script.write_bytes(content.replace(os.fsencode(official), os.fsencode(path)))
    subprocess.run(
        [base.uv_path(), "pip", "install", "--quiet", "--offline", "--no-index", "--compile-bytecode",
         "--find-links", wheels, "--python", path / "bin/python", PIP],
        check=True,
    )  # fmt: skip
    return path


def ini_template(official: Path, draft: Path) -> dict[str, str]:
    """Return the ini that CKAN generates, with variables, in the words of two template engines.

    official
        The virtualenv of CKAN.
    draft
        A file that may be written.

    Returns {"ini.j2": text, "ini.erb": text}.
    """
    subprocess.run([official / "bin/ckan", "generate", "config", draft], check=True, capture_output=True, cwd="/")
    lines = draft.read_text(encoding="utf-8").splitlines()
    variables = {
        "SECRET_KEY": "secret", "sqlalchemy.url": "database_url", "ckan.site_url": "site_url", "solr_url": "solr_url",
        "ckan.redis.url": "redis_url", "ckan.storage_path": "storage_path", "ckan.plugins": "plugins",
        "ckan.site_title": "site_title",
    }  # fmt: skip
    made = {}
    for name, (before, after) in {"ini.j2": ("{{ ", " }}"), "ini.erb": ("<%= ", " %>")}.items():
        own = {option: f"{option} = {before}{variable}{after}" for option, variable in variables.items()}
        kept = [own.pop(line.partition("=")[0].strip(), line) for line in lines]
        # Options that the generated one has only in a comment.
        kept.insert(kept.index("use = egg:ckan") + 1, "\n".join(own.values()))
        made[name] = "\n".join(kept) + "\n"
    return made
