"""Small real git repositories of CKAN extensions, for the tests and the demo.

An extension made here works with the stand-in CKAN of this directory and with the real one: it shows one line
of text, in an element of class `NAME-marker`, at the top of each page.
"""

from __future__ import annotations

import html
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

_PYPROJECT = """\
[project]
name = "ckanext-{name}"
version = "{version}"
description = "Shows one line on each page"

[project.entry-points."ckan.plugins"]
{name} = "ckanext.{name}.plugin:Plugin"

"""
_SETUPTOOLS = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[tool.setuptools.packages.find]
include = ["ckanext.*"]

[tool.setuptools.package-data]
"*" = ["**/*.html"]
"""
# uv carries its own copy of this build backend: such an extension installs without a package index.
_UV_BUILD = """\
[build-system]
requires = ["uv_build>=0.7,<1"]
build-backend = "uv_build"

[tool.uv.build-backend]
module-name = "ckanext.{name}"
module-root = ""
"""
_PLUGIN = '''\
"""One line of text on each page."""

from ckan import plugins
from ckan.plugins import toolkit

TEXT = {text!r}


class Plugin(plugins.SingletonPlugin):
    """Adds the templates of this extension."""

    plugins.implements(plugins.IConfigurer)
    stub_migrations = {migrations}

    def update_config(self, config):
        {boot}

    def front_text(self):
        return TEXT
'''
_HEADER = """\
{{% ckan_extends %}}
{{% block header_wrapper %}}{{{{ super() }}}}
<div class="container"><span class="{name}-marker">{{% raw %}}{text}{{% endraw %}}</span></div>
{{% endblock %}}
"""


def git(repo: Path, *arguments: str) -> str:
    """Run git in a repository, as an author of its own, and return what it prints.

    Raises RuntimeError with git's message when it fails.
    """
    command = ["git", "-C", str(repo), "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command += ["-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"git {' '.join(arguments)} failed: {result.stderr.strip()}")
    return result.stdout.strip()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _name(repo: Path) -> str:
    return repo.name.removeprefix("ckanext-")


def _commit(repo: Path, message: str) -> str:
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(repo, "rev-parse", "HEAD")


def _write_plugin(repo: Path, text: str, boot: str, migrations: int, before: str = "") -> None:
    name = _name(repo)
    package = repo / "ckanext" / name
    plugin = _PLUGIN.format(text=text, boot=boot, migrations=migrations)
    _write(package / "plugin.py", plugin.replace("TEXT =", f"{before}TEXT =", 1))
    _write(package / "templates/header.html", _HEADER.format(name=name, text=html.escape(text)))


# Serves well until `current` names its release, ends then, and never comes back.
_DIES = """\
import os, sys, threading, time
current = os.path.join(os.path.dirname(os.path.dirname(sys.prefix)), "current")
live = lambda: os.path.realpath(current) == os.path.realpath(sys.prefix)
if live():
    {error}
def watch():
    while not live():
        time.sleep(0.02)
    os.kill(os.getppid(), 9)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
"""
_NO_JOBS = """\
import sys, time
{boot}
if "jobs" in sys.argv:
    time.sleep(2)
    {error}
"""
_BOOT = 'toolkit.add_template_directory(config, "templates")'


def make_repo(
    directory: str | Path,
    name: str,
    text: str,
    *,
    version: str = "0.1.0",
    requirements: Iterable[str] = (),
    migrations: int = 0,
    backend: str = "setuptools",
) -> Path:
    """Make the repository `ckanext-NAME` with one commit on the branch `main`.

    directory
        Where the repository's directory is made.
    name
        Name of the extension and of its plugin, a Python identifier.
    text
        What it shows on each page.
    version
        Version of its distribution.
    requirements
        Lines of a requirements.txt; without any there is no such file.
    migrations
        How many migrations the stand-in CKAN takes the plugin to have.
    backend
        `setuptools`, as most extensions have it, or `uv_build`, which installs without a package index.

    Returns the path of the repository, which also serves as its clone URL.
    """
    repo = Path(directory) / f"ckanext-{name}"
    repo.mkdir(parents=True)
    git(repo, "init", "--quiet", "--initial-branch", "main")
    build = {"setuptools": _SETUPTOOLS, "uv_build": _UV_BUILD.format(name=name)}[backend]
    _write(repo / "pyproject.toml", _PYPROJECT.format(name=name, version=version) + build)
    _write(repo / "ckanext" / name / "__init__.py", "")
    lines = list(requirements)
    if lines:
        _write(repo / "requirements.txt", "\n".join(lines) + "\n")
    _write_plugin(repo, text, _BOOT, migrations)
    _commit(repo, f"Show {text!r}")
    return repo


def commit_change(repo: Path, text: str, migrations: int = 0, subject: str = "") -> str:
    """Commit another text, which also mends what `commit_broken` broke; returns the commit's full hash."""
    _write_plugin(repo, text, _BOOT, migrations)
    return _commit(repo, subject or f"Show {text!r}")


def commit_pages(repo: Path, text: str, pages: dict[str, str]) -> str:
    """Commit a plugin that adds pages to the stand-in: by path, what each gives, an expression; returns the hash."""
    _write_plugin(repo, text, _BOOT, 0)
    plugin = repo / "ckanext" / _name(repo) / "plugin.py"
    given = ", ".join(f"{path!r}: lambda: {what}" for path, what in pages.items())
    more = f"    def pages(self):\n        return {{{given}}}\n"
    _write(plugin, plugin.read_text(encoding="utf-8") + "\n" + more)
    return _commit(repo, f"Add {' '.join(pages)}")


def commit_migration(repo: Path, name: str) -> str:
    """Commit a file where CKAN looks for migrations of the plugin; returns the commit's full hash."""
    plugin = next(repo.glob("ckanext/*/plugin.py")).parent
    file = plugin / f"migration/{plugin.name}/versions/{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"revision = {name!r}\n", encoding="utf-8")
    return _commit(repo, f"Migration {name}")


_INDEXING = """\
    plugins.implements(plugins.IPackageController, inherit=True)

    def before_dataset_index(self, pkg_dict):
        pkg_dict["notes"] = (pkg_dict.get("notes") or "") + {word!r}
        {more}
        return pkg_dict

    def update_config"""


def commit_indexing(repo: Path, text: str, word: str, more: str = "pass") -> str:
    """Commit a plugin that adds a word to each dataset as it goes into the search index.

    repo
        A repository of make_repo.
    text
        What it shows on each page.
    word
        The word.
    more
        A line of Python that runs for each dataset.

    Returns the commit's full hash.
    """
    _write_plugin(repo, text, _BOOT, 0)
    plugin = repo / "ckanext" / _name(repo) / "plugin.py"
    indexing = _INDEXING.format(word=f" {word}", more=more)
    plugin.write_text(plugin.read_text().replace("    def update_config", indexing, 1))
    return _commit(repo, f"Index {word}")


_ALEMBIC_ENV = """\
from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config
options = config.get_section(config.config_ini_section)
engine = engine_from_config(options, prefix="sqlalchemy.", poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection, version_table="{name}_alembic_version", transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()
"""
_REVISION = """\
from alembic import op

revision = {revision!r}
down_revision = {before!r}


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""


def commit_revisions(repo: Path, *revisions: dict[str, str], text: str = "") -> str:
    """Commit migrations of the plugin for the real CKAN, in place of those that there were.

    repo
        A repository of make_repo.
    revisions
        `{"revision": name, "before": the one before it, "upgrade": a line of Python, "downgrade": another}` each; the
        one before is by default the one that is given before.
    text
        What the plugin shows from now on.

    Returns the commit's full hash.
    """
    name = _name(repo)
    place = repo / "ckanext" / name / "migration" / name
    shutil.rmtree(place, ignore_errors=True)
    _write(place / "alembic.ini", "[alembic]\nscript_location = %(here)s\n")
    _write(place / "env.py", _ALEMBIC_ENV.format(name=name))
    before = None
    for told in revisions:
        whole = {"before": before, "downgrade": "pass", **told}
        _write(place / "versions" / f"{told['revision']}.py", _REVISION.format(**whole))
        before = told["revision"]
    if text:
        _write_plugin(repo, text, _BOOT, 0)
    return _commit(repo, f"Migrations {', '.join(told['revision'] for told in revisions)}")


def commit_broken(repo: Path, message: str = "this extension is broken", where: str = "boot") -> str:
    """Commit a plugin that raises RuntimeError.

    repo
        A repository of make_repo.
    message
        Text of the error.
    where
        `boot`: when CKAN configures the plugin; `import`: as soon as its module is imported; `switch`: when its release
        has become the current one, with the whole app server; `request`: when a page is asked for; `jobs`: in a worker,
        when it has booted for two seconds.

    Returns the commit's full hash.
    """
    error = f"raise RuntimeError({message!r})"
    if where == "import":
        _write_plugin(repo, "broken", _BOOT, 0, before=f"{error}\n")
    elif where == "request":
        _write_plugin(repo, "broken", "type(self).front_text = lambda self: 1 / 0  # a page that fails", 0)
    else:
        boots = {"switch": _DIES.format(error=error), "jobs": _NO_JOBS.format(boot=_BOOT, error=error)}
        code = boots.get(where, error)
        _write_plugin(repo, "broken", code.strip().replace("\n", "\n        "), 0)
    return _commit(repo, f"Break at {where}")


def tag(repo: Path, name: str, commit: str = "HEAD") -> str:
    """Make or move an annotated tag; returns the hash of the commit that it stands for."""
    git(repo, "tag", "--annotate", "--force", "--message", name, name, commit)
    return git(repo, "rev-parse", f"{name}^{{commit}}")


def branch(repo: Path, name: str) -> None:
    """Make a branch at HEAD and check it out; `main` and others that exist are only checked out."""
    if git(repo, "branch", "--list", name):
        git(repo, "switch", "--quiet", name)
    else:
        git(repo, "switch", "--quiet", "--create", name)
