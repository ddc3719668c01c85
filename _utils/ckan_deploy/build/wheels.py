"""
Wheels from sources: what an extension's build makes of a checkout or an sdist, in the sandbox, and nothing else.

The build gets a copy of the sources, and an interpreter with what it says it requires, installed from wheels. What it
leaves is taken for an archive of somebody else's: looked through, and kept beside what it was made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from email.parser import HeaderParser
from typing import NamedTuple, TypeVar

from attrs import frozen
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion

from ckan_deploy.build import installer as installers
from ckan_deploy.build import uv_and_pip, virtualenv
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.uv_and_pip import Installer, NoWheel
from ckan_deploy.errors import FormulaError
from ckan_deploy.host import Host
from ckan_deploy.releases.site import Site
from ckan_deploy.sources import archives
from ckan_deploy.system import files, places, processes, toml

T = TypeVar("T")
# What a project without pyproject.toml is built with: https://peps.python.org/pep-0517/#source-trees
LEGACY = "setuptools.build_meta:__legacy__"
# How often packages without a wheel may be found: each time more of what is required can be seen.
ROUNDS = 12
# Runs in the sandbox, by the interpreter of the build's own environment. Two calls of PEP 517.
BUILD = """
import importlib, json, os, shutil, sys
given = json.loads(sys.argv[1])
sys.path[:] = [path for path in sys.path if path]
tree, out = os.path.abspath("src"), os.path.abspath("dist")
if not os.path.isdir(out):
    os.mkdir(out)
    if os.path.isdir(given["source"]):
        shutil.copytree(given["source"], tree, symlinks=True)
    else:
        shutil.unpack_archive(given["source"], tree)
if not os.path.isdir(given["source"]):
    tree = os.path.join(tree, *(os.listdir(tree) if len(os.listdir(tree)) == 1 else []))
os.chdir(os.path.join(tree, given["subdirectory"]))
if given["look"]:
    project = open("pyproject.toml", encoding="utf-8").read() if os.path.isfile("pyproject.toml") else ""
    print("\\nPROJECT " + json.dumps(project))
elif given["uv"]:
    words = [given["uv"], "build", "--wheel", "--offline", "--no-config", "--python", sys.executable, "-o", out]
    os.execv(words[0], words)
else:
    sys.path[:0] = [os.path.abspath(path) for path in given["backend_path"]]
    name, _, inner = given["backend"].partition(":")
    backend = importlib.import_module(name)
    for part in filter(None, inner.split(".")):
        backend = getattr(backend, part)
    wants = getattr(backend, "get_requires_for_build_wheel", lambda settings=None: [])({})
    more = [item for item in wants if item not in given["requires"]]
    if more:
        print("\\nREQUIRES " + json.dumps(more))
    else:
        backend.build_wheel(out, {})
"""


@frozen
class Builder:
    """
    Makes wheels on this host, for the Python of one virtualenv.

    path
        The virtualenv: the base, or one that is filled.
    """

    host: Host
    installer: Installer
    sandbox: Sandbox
    path: str

    @classmethod
    def of(cls, site: Site, path: str) -> Builder:
        """
        Take it from a site.

        site
            The site.
        path
            The virtualenv.
        """
        return cls(site.host, Installer.of(site.settings), Sandbox.of(site.settings), path)

    def of_checkout(self, checkout: str, subdirectory: str) -> str:
        """
        Return the wheel of a checkout, built once for all that the build depends on.

        checkout
            The directory of the checkout, which is root's own.
        subdirectory
            Where the package is in it, '' for its top.

        Raises ``FormulaError`` with what the build says.
        """
        inner = hashlib.sha256(subdirectory.encode("utf-8")).hexdigest()[:8]
        return self._kept(f"{checkout}.wheels", inner, checkout, subdirectory)

    def of_sdist(self, archive: str) -> str:
        """
        Return the wheel of an sdist, built once for all that the build depends on.

        archive
            The sdist.

        Raises ``FormulaError`` with what the build says.
        """
        archives.check_members(archive)
        with open(archive, "rb") as handle:
            digest = hashlib.sha256(handle.read()).hexdigest()
        return self._kept(f"{self.installer.wheels}/sdists/{digest[:16]}", "top", archive, "")

    def with_wheels(self, attempt: Callable[[], T]) -> T:
        """
        Do what needs wheels; packages that have none get one, built here from their sdist, until it can be done.

        attempt
            What to do: it raises ``NoWheel``.

        Returns what it returns. Raises ``FormulaError``.
        """
        done: set[tuple[str, str]] = set()
        for _ in range(ROUNDS):
            try:
                return attempt()
            except NoWheel as exc:
                wanted = {(name, _specifiers(name, str(exc))) for name in exc.names} - done
                if not wanted:
                    raise
                for name, specifiers in sorted(wanted):
                    self._of_index(name, specifiers)
                done |= wanted
        return attempt()

    def _of_index(self, name: str, specifiers: str) -> None:
        """Bring the sdist of a package here, and put the wheel of it where the installer finds it."""
        found = installers.source(name, specifiers, self.path, self.installer)
        folder = os.path.join(self.installer.shared, "archives")
        digest = next((f"{kind}={digits}" for kind, digits in found.hashes.items()), "")
        sdist = archives.fetch_locked(self.host, name, found.url, digest, folder, self.installer.indexes)
        try:
            wheel = self.of_sdist(sdist)
        except FormulaError as exc:
            raise FormulaError(f"{name} ({os.path.basename(sdist)}): {exc}") from exc
        target = os.path.join(self.installer.wheels, os.path.basename(wheel))
        draft = f"{target}.part"
        shutil.copyfile(wheel, draft)
        os.rename(draft, target)

    def _kept(self, top: str, inner: str, source: str, subdirectory: str) -> str:
        os.makedirs(top, mode=0o755, exist_ok=True)
        # What the build asked for, when it was built here: its own code says that only when it runs.
        note = f"{top}/{inner}.json"
        with files.locked(f"{top}/.{inner}.lock"):
            told = files.read(note, "")
            if told:
                folder = f"{top}/{self._key(inner, json.loads(told))}"
                found = [name for name in os.listdir(folder) if name.endswith(".whl")] if os.path.isdir(folder) else []
                if found:
                    return os.path.join(folder, found[0])
            with places.temporary(self.installer.shared, "build") as work:
                made, requires = self._build(work, source, subdirectory)
                folder = f"{top}/{self._key(inner, requires)}"
                os.makedirs(folder, mode=0o755, exist_ok=True)
                target = os.path.join(folder, os.path.basename(made))
                os.rename(made, target)
            files.write(note, json.dumps(requires))
        return target

    def _key(self, inner: str, requires: Sequence[str] | None) -> str:
        """The name of a directory that stands for all that a build depends on, beside its sources."""
        python = virtualenv.home_python(self.path)
        if requires is None:
            about = os.stat(uv_and_pip.program(self.installer))
            tools = [f"uv {about.st_size} {about.st_mtime_ns}"]
        else:
            folder = virtualenv.site_packages(os.path.dirname(os.path.dirname(self._environment(requires))))[0]
            tools = sorted(name for name in os.listdir(folder) if name.endswith(".dist-info"))
        facts = [inner, os.path.realpath(python), requires, tools, self.sandbox.kind, self.sandbox.network]
        return f"{self._python()}-{hashlib.sha256(json.dumps(facts).encode('utf-8')).hexdigest()[:16]}"

    def place(self, work: str) -> str:
        """
        Return a directory of the build user's, made in one of root's.

        work
            What ``places.temporary`` gave.
        """
        place = os.path.join(work, "build")
        os.mkdir(place, 0o755)
        os.chmod(work, 0o755)
        if self.sandbox.user:
            os.chown(place, pwd.getpwnam(self.sandbox.user).pw_uid, -1)
        return place

    def _build(self, work: str, source: str, subdirectory: str) -> tuple[str, list[str] | None]:
        """
        Build a wheel in a directory of root's; returns where root's copy of it is, and what the build required, None
        where uv built it.
        """
        place = self.place(work)
        given = {"source": source, "subdirectory": subdirectory, "look": False, "uv": ""}
        if os.path.isdir(source):
            text = _project_of(os.path.join(source, subdirectory))
        else:
            look = {**given, "look": True}
            text = "".join(self._answer(place, virtualenv.home_python(self.path), look, "PROJECT"))
        about = _build_system(text)
        requires = about.requires
        for _ in range(3):
            uv = self._own_backend(about)
            python = virtualenv.home_python(self.path) if uv else self._environment(requires)
            call = {**given, "uv": uv, "requires": requires, "backend": about.backend, "backend_path": about.path}
            more = self._answer(place, python, call, "REQUIRES")
            if not more:
                return _taken(os.path.join(place, "dist"), work), None if uv else requires
            requires = [*requires, *more]
        raise FormulaError(f"its build asks for more and more: {', '.join(requires)}.")

    def _answer(self, place: str, python: str, call: Mapping[str, object], word: str) -> list[str]:
        reads = [str(call["source"]), *filter(None, [str(call["uv"])]), os.path.dirname(os.path.dirname(python))]
        reads = [path for path in reads if path not in ("/usr", "/")]
        env = {"UV_NO_CACHE": "1", "UV_PYTHON_DOWNLOADS": "never"} if call["uv"] else {}
        said = self.sandbox.run([python, "-B", "-c", BUILD, json.dumps(call)], reads, place, env, network=True)
        if said.retcode != 0:
            late = self.sandbox.over_time(said)
            raise FormulaError(f"its build {late}." if late else f"it cannot be built: {processes.tail(said, 4)}.")
        lines = [line for line in said.stdout.splitlines() if line.startswith(f"{word} ")]
        return _strings(lines[-1].partition(" ")[2]) if lines else []

    def _own_backend(self, about: _Build) -> str:
        """Return uv, where a project is built by what uv has of its own; else ''."""
        if about.backend != "uv_build" or about.path or uv_and_pip.kind(self.installer) != "uv":
            return ""
        return uv_and_pip.program(self.installer)

    def _environment(self, requires: Sequence[str]) -> str:
        """Return the interpreter of a virtualenv with what a build requires; made once, from wheels, and root's own."""
        direct = [line for line in requires if Requirement(line).url]
        if direct:
            raise FormulaError(
                f"its build requires {direct[0]!r} by an address; put a wheel of it where packages come from."
            )
        about = json.dumps([sorted(requires), self._python(), virtualenv.home_python(self.path)])
        place = os.path.join(
            self.installer.shared, "environments", hashlib.sha256(about.encode("utf-8")).hexdigest()[:16]
        )
        files.once(place, lambda: self._equip(place, requires))
        return f"{place}/bin/python"

    def _equip(self, place: str, requires: Sequence[str]) -> list[str]:
        virtualenv.create(place, python=virtualenv.home_python(self.path))
        if requires:
            self.with_wheels(lambda: installers.install(place, list(requires), self.installer))
        return sorted(requires)

    def _python(self) -> str:
        version = virtualenv.interpreter(self.path)["version"]
        return f"py{'.'.join(version.split('.')[:2])}"


def read(path: str) -> tuple[str, str, list[str]]:
    """
    Return the name and the version that a wheel gives itself, and its requirements.

    path
        The wheel.

    Raises ``FormulaError`` for what is none.
    """
    shown = os.path.basename(path)
    try:
        name, version, _, _ = parse_wheel_filename(shown)
        with zipfile.ZipFile(path) as archive:
            found = [item for item in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", item)]
            if len(found) != 1:
                raise FormulaError(f"the wheel {shown} has {len(found)} descriptions of itself; correct its build.")
            about = HeaderParser().parsestr(archive.read(found[0]).decode("utf-8"))
    except (*archives.UNREADABLE, InvalidVersion) as exc:
        raise FormulaError(f"the wheel {shown} cannot be read ({exc}); correct its build.") from exc
    if canonicalize_name(about["Name"] or "") != name:
        raise FormulaError(f"the wheel {shown} says that it is {about['Name']}; correct its build.")
    return str(about["Name"]), str(version), list(about.get_all("Requires-Dist") or [])


def _project_of(folder: str) -> str:
    """The text of a checkout's pyproject.toml: a plain file of it, since a link may lead anywhere."""
    path = os.path.join(folder, "pyproject.toml")
    if not os.path.lexists(path):
        return ""
    if os.path.islink(path) or not os.path.isfile(path):
        raise FormulaError("its pyproject.toml is no plain file; correct that.")
    return files.read(path, "", errors="replace")


class _Build(NamedTuple):
    """What a project says of its build."""

    requires: list[str]
    backend: str
    path: list[str]


def _build_system(text: str) -> _Build:
    """What a project says of its build: https://packaging.python.org/specifications/pyproject-toml"""
    try:
        table = toml.loads(text).get("build-system", {})
        requires = table.get("requires", ["setuptools>=40.8.0"])
        backend, path = table.get("build-backend", LEGACY), table.get("backend-path", [])
        for line in requires:
            Requirement(line)
    except (ValueError, AttributeError, TypeError, InvalidRequirement) as exc:
        raise FormulaError(f"its pyproject.toml cannot be read ({exc}); correct it.") from exc
    return _Build(list(requires), str(backend), list(path))


def _taken(dist: str, work: str) -> str:
    """Copy the one wheel that a build has made, without following a link of its, and look through the copy."""
    folder = os.open(dist, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".whl")]
        if len(names) != 1 or not archives.WHEEL.fullmatch(names[0]):
            raise FormulaError(f"its build has made {', '.join(sorted(names)) or 'no wheel'}; correct it.")
        target = os.path.join(work, names[0])
        wheel = os.open(names[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        about = os.fstat(wheel)
        if not stat.S_ISREG(about.st_mode) or about.st_size > archives.LIMIT:
            os.close(wheel)
            raise OSError(0, "it is no file of a fair size", names[0])
        with open(wheel, "rb") as handle, open(target, "xb") as copy:
            shutil.copyfileobj(handle, copy)
    except OSError as exc:
        raise FormulaError(f"the wheel that its build has made is not taken ({exc.strerror}); correct it.") from exc
    finally:
        os.close(folder)
    archives.check_members(target)
    read(target)
    return target


def _strings(text: str) -> list[str]:
    """What the script in the sandbox has said: a text, or requirements. It is not trusted to say the truth."""
    try:
        said = json.loads(text)
        if isinstance(said, str):
            return [said]
        for line in said:
            Requirement(line)
        return list(said)
    except (ValueError, TypeError, InvalidRequirement) as exc:
        raise FormulaError(f"its build says what cannot be read ({exc}).") from exc


def _specifiers(name: str, text: str) -> str:
    """What versions of a package an installer's explanation speaks of, as far as requirements name them."""
    found = re.findall(rf"(?:require|depends? on) {re.escape(name)}([<>=!~][\w.,<>=!~*+-]*)", text, re.IGNORECASE)
    return ",".join(dict.fromkeys(item.rstrip(".,") for item in found))
