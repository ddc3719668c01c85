"""
uv and pip as programs: how they are called for a virtualenv, with which variables, and what their failures mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from attrs import field, frozen
from packaging.utils import canonicalize_name

from ckan_deploy.build import relocate, virtualenv
from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.system import files, places, processes, safely
from ckan_deploy.system.processes import Done

# What has one of these ends cannot be imported.
METADATA = (".dist-info", ".egg-info", ".egg-link", ".egg")


class NoWheel(FormulaError):
    """Packages have no wheel for this Python: ``names``."""

    def __init__(self, text: str, names: Sequence[str]) -> None:
        super().__init__(text)
        self.names = tuple(names)


@frozen
class Installer:
    """
    How packages are installed: ``shared`` (the directory ``paths:shared``, with its cache and the wheels
    that were built here), ``kind`` (auto, uv, pip), ``uv`` (the program), ``link`` (how files of its cache are shared),
    ``reuse_hours`` (how long a resolution is taken again).
    """

    shared: str
    kind: str = "auto"
    uv: str = ""
    index_url: str = field(default="", repr=False)
    index_urls: tuple[str, ...] = field(default=(), repr=False)
    find_links: str = ""
    offline: bool = False
    link: str = "auto"
    reuse_hours: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Installer:
        """
        Take it from the settings of a host.

        settings
            The settings.
        """
        asked = settings.installer
        return cls(
            kind=asked.kind,
            uv=asked.uv,
            index_url=asked.index_url,
            index_urls=asked.index_urls,
            find_links=asked.find_links,
            offline=asked.offline,
            shared=settings.paths.shared,
            link=settings.link,
            reuse_hours=asked.reuse_hours,
        )

    @property
    def cache(self) -> str:
        """The directory of its cache. Not the one in which earlier versions let build code write."""
        return os.path.join(self.shared, "packages")

    @property
    def indexes(self) -> tuple[str, ...]:
        """The addresses of the package indexes that are named, in the order in which they are asked."""
        return (*self.index_urls, *filter(None, [self.index_url]))

    @property
    def wheels(self) -> str:
        """The directory of the wheels that were built on this host."""
        return os.path.join(self.shared, "wheels")


def kind(installer: Installer) -> str:
    """
    Return ``uv`` or ``pip``: which one the settings and this host lead to.

    installer
        The installer.

    Raises ``FormulaError`` when uv is asked for and is not there.
    """
    name = installer.uv or "uv"
    if installer.kind == "pip":
        return "pip"
    if shutil.which(name):
        return "uv"
    if installer.kind == "uv":
        raise FormulaError(f"uv is not installed as {name!r}; install it or correct ckan:installer:uv.")
    return "pip"


def program(installer: Installer) -> str:
    """
    Return the path of uv.

    installer
        The installer.
    """
    name = installer.uv or "uv"
    return shutil.which(name) or name


def sources(installer: Installer, built: bool = True) -> list[str]:
    """
    Return options of uv and pip: where packages come from, beside the index.

    installer
        The installer.
    built
        Whether what was built on this host counts.
    """
    found = ["--find-links", installer.find_links] if installer.find_links else []
    if built and os.path.isdir(installer.wheels):
        found += ["--find-links", installer.wheels]
    return found


def uv(path: str, options: Sequence[str], installer: Installer) -> Done:
    """
    Run ``uv pip install`` for a virtualenv.

    path
        The virtualenv.
    options
        Further options.
    installer
        The installer.

    Raises ``NoWheel``, ``FormulaError`` whose text is what uv says.
    """
    command = [program(installer), "pip", "install", "--python", bare(path, installer), "--prefix", path]
    command += [*sources(installer), "--no-build", *(["--offline"] if installer.offline else [])]
    return done(run([*command, *options], installer, uv_env(installer)), installer, path)


def uv_env(installer: Installer) -> dict[str, str]:
    """
    Return the variables that uv runs with.

    installer
        The installer.
    """
    return {
        # Root's git is for mirrors: an address in the metadata of a package leads nowhere.
        "GIT_ALLOW_PROTOCOL": "none",
        # VIRTUAL_ENV of whoever started the minion must not count; nothing is to be downloaded but packages.
        "VIRTUAL_ENV": "",
        "UV_NO_PROGRESS": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # The host's own certificates: an index behind a company's certificate works as it does for apt and git.
        "UV_SYSTEM_CERTS": "1",
        "NO_COLOR": "1",
        "UV_CACHE_DIR": f"{installer.cache}/uv",
        # Here and not among the arguments: they may hold passwords. The first index that has a package is taken for it.
        "UV_INDEX_STRATEGY": "first-index",
        "UV_INDEX": " ".join(installer.index_urls),
        **({"UV_DEFAULT_INDEX": installer.index_url} if installer.index_url else {}),
    }


def pip(path: str, options: Sequence[str], file: str, installer: Installer) -> None:
    """
    Run ``pip install`` for a virtualenv.

    path, options, installer
        As for ``uv``.
    file
        The requirements file.

    Raises ``FormulaError`` whose text is what pip says.
    """
    if installer.index_urls:
        raise FormulaError(
            "pip has no order among several package indexes, so a package of yours may come from a public one; install "
            "uv, or name one index in ckan:installer:index_url and none in index_urls."
        )
    command = [bare(path, installer), "-m", "pip", "install", "--quiet", "--no-input", "--prefix", path]
    command += ["--only-binary", ":all:", *sources(installer), *(["--no-index"] if installer.offline else [])]
    env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.environ.get("PIP_CONFIG_FILE", "")}
    env = {name: value for name, value in env.items() if value}
    env["GIT_ALLOW_PROTOCOL"] = "none"
    env["PIP_CACHE_DIR"] = f"{installer.cache}/pip"
    if installer.index_url:
        env["PIP_INDEX_URL"] = installer.index_url
    with workplace(installer, {}) as seen:
        _link_metadata(path, seen)
        env["PYTHONPATH"] = seen
        done(run([*command, *options, "-r", file], installer, env), installer, path)


def _link_metadata(path: str, target: str) -> None:
    """
    Show pip what a virtualenv has. Modules beside the metadata would be taken for those of Python and of pip itself,
    and root runs none of a release.
    """
    for folder in virtualenv.site_packages(path):
        for entry in os.scandir(folder):
            if entry.name.endswith(METADATA):
                os.symlink(entry.path, os.path.join(target, entry.name))


def bare(path: str, installer: Installer) -> str:
    """
    Return an interpreter that has no packages, of the Python that a virtualenv is made with: to ask that one where it
    belongs would run what its packages have for each start of Python.
    """
    python, pip = virtualenv.home_python(path), kind(installer) == "pip"
    key = hashlib.sha256(f"{python} {virtualenv.interpreter(path)['version']}".encode()).hexdigest()[:12]
    place = os.path.join(installer.shared, "interpreters", f"{key}{'-pip' if pip else ''}")
    files.once(place, lambda: virtualenv.create(place, python=python, pip=pip))
    return f"{place}/bin/python"


def rename_interpreter(path: str, installer: Installer) -> None:
    """
    Have scripts that were just installed name the virtualenv's interpreter, not the one that the installer was told of.

    path
        The virtualenv.
    installer
        The installer.
    """
    relocate.rename(path, {os.path.dirname(os.path.dirname(bare(path, installer))): path})


def run(command: Sequence[str], installer: Installer, env: Mapping[str, str]) -> Done:
    """
    Run uv or pip.

    command
        The program and its arguments.
    installer
        The installer.
    env
        Its variables.

    Raises ``FormulaError`` where others than root may put another program in its place.
    """
    safely.refuse_replaceable(command[0], "ckan:installer:uv", "program", alone=True)
    os.makedirs(installer.cache, mode=0o755, exist_ok=True)
    return processes.run(command, env={"HOME": installer.cache, **env}, cwd=installer.cache, timeout=1800)


def done(said: Done, installer: Installer, path: str) -> Done:
    """
    Return what uv or pip said, where it went well.

    said
        What ``run`` returned.
    installer
        The installer.
    path
        The virtualenv.

    Raises ``NoWheel``, ``FormulaError`` in words that tell what to do.
    """
    if said.retcode == 0:
        return said
    text = said.stderr + said.stdout
    if "No space left on device" in text:
        raise FormulaError(f"the disk of {path} or of {installer.cache} is full.")
    other = re.search(r"Hash mismatch for `([^`]+)`", text)
    if other or "DO NOT MATCH THE HASHES" in text:
        what = other[1] if other else "a package"
        raise FormulaError(
            f"{what} has another hash at the package index than the lock file says; find out why, and deploy again "
            "for a new lock file only then."
        )
    if "unexpected argument" in text:
        raise FormulaError(
            f"{program(installer)} is too old ({told(said, installer)}); run state.apply ckan, or update it."
        )
    gone = re.search(r"Failed to (?:fetch|download): [`<]?([^`>\s]+)", text)
    if gone:
        raise FormulaError(
            f"{processes.without_logins(gone[1])} cannot be had ({_reason(said, installer)}); see whether that package "
            "index answers, and correct ckan:installer or deploy again later."
        )
    # uv gives the name in a hint.
    names = re.findall(r"^hint: Wheels are required for `([\w.-]+)`", said.stderr, re.MULTILINE)
    if names:
        raise NoWheel(told(said, installer), [canonicalize_name(name) for name in names])
    raise FormulaError(told(said, installer))


def told(said: Done, installer: Installer) -> str:
    """
    Return what uv or pip said last, without the passwords of indexes.

    said
        What ``run`` returned.
    installer
        The installer.
    """
    passwords = [urlsplit(url).password or "" for url in (*installer.indexes, installer.find_links)]
    return processes.tail(said, hide=[*passwords, *map(unquote, passwords)])


def _reason(said: Done, installer: Installer) -> str:
    return told(said._replace(stderr="\n".join(said.stderr.strip().splitlines()[-1:])), installer).strip()


@contextlib.contextmanager
def workplace(installer: Installer, given: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """
    Have a directory with files of lines; gone at the end.

    installer
        The installer.
    given
        The lines of each file by its name without ``.txt``.

    Yields its path.
    """
    with places.temporary(installer.shared, "install") as path:
        for name, lines in given.items():
            with open(f"{path}/{name}.txt", "w", encoding="utf-8") as handle:
                handle.writelines(f"{line}\n" for line in lines)
        yield path
