"""
The manifest of a release, ``release.json``: what it is, and what happened to it. And the resolution: what a release is
to hold, decided at plan and the same for all hosts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, fields, frozen
from packaging.utils import canonicalize_name

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.ids import check_id, now
from ckan_deploy.sources import pylock
from ckan_deploy.sources.pins import Patch, Pin

# Paths and requirements are made of these.
_PACKAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_ENV = re.compile(r"[a-z][a-z0-9_-]*")
_NO_PIN = Pin("index")

# What may follow what. A live release fails when a deploy is reverted after its switch.
TRANSITIONS = {
    "building": {"built", "failed"},
    "built": {"checked", "failed"},
    "checked": {"live", "failed"},
    "live": {"retired", "bad", "failed"},
    "retired": {"live", "bad"},
    "bad": {"live"},
    "failed": set(),
}
# The states of a release that has served the site and may do so again.
GOOD = ("live", "retired")


@frozen
class Base:
    """The virtualenv that a release is a clone of: its CKAN, its Python (``3.11``), and where it stood."""

    ckan: str
    python: str
    path: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it as manifests have it."""
        return {"ckan": self.ckan, "python": self.python, **({"path": self.path} if self.path else {})}


@frozen
class Resolution:
    """
    Commits, versions and hashes that a release will hold. ``overridden`` is ``{library: {"by", "base", "got"}}``,
    ``lock`` the text of the lock file (see ``sources.pylock``) of what is installed beside base and extensions, ''
    for a release of an earlier version, ``notes`` what was noticed, a sentence each; ``promoted`` is
    ``{"env", "release"}`` where it is what another environment had live.
    """

    base: Base
    extensions: Mapping[str, Pin]
    patches: tuple[Patch, ...] = ()
    packages: Mapping[str, str] = field(factory=dict)
    overridden: Mapping[str, Mapping[str, str]] = field(factory=dict)
    lock: str = ""
    notes: tuple[str, ...] = ()
    promoted: Mapping[str, str] = field(factory=dict)

    @classmethod
    def of(cls, given: Any) -> Resolution:
        """
        Read it from JSON: an argument of a job, a manifest, what the pillar says of the environment.

        given
            What ``to_json`` returned.

        Raises ``InvalidArgument`` for what is none.
        """
        try:
            base = {name: _text(given["base"].get(name, "")) for name in ("ckan", "python", "path")}
            if not base["ckan"] or not base["python"]:
                raise ValueError(base)
            return cls(
                Base(**base),
                {_package(name): Pin.of(pin) for name, pin in given["extensions"].items()},
                tuple(map(Patch.of, given.get("patches") or ())),
                {_package(name): _version(version) for name, version in (given.get("packages") or {}).items()},
                {_package(name): _texts(how) for name, how in (given.get("overridden") or {}).items()},
                _lock(given.get("lock") or ""),
                tuple(map(_text, given.get("notes") or ())),
                _source(given.get("promoted") or {}),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise InvalidArgument("that is no resolution; take what ckan_release.plan returned as contents.") from exc

    def to_json(self) -> dict[str, Any]:
        """Return it as manifests and arguments of jobs have it. Nothing in it is secret."""
        return {
            "base": self.base.to_json(),
            "extensions": {name: pin.to_json() for name, pin in self.extensions.items()},
            "patches": [patch.to_json() for patch in self.patches],
            "packages": dict(self.packages),
            "overridden": {name: dict(how) for name, how in self.overridden.items()},
            **({"lock": self.lock} if self.lock else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"promoted": dict(self.promoted)} if self.promoted else {}),
        }

    @property
    def origin(self) -> str:
        """Where it was promoted from, such as ``20261125021500Z of staging``; '' for nowhere."""
        return f"{self.promoted['release']} of {self.promoted['env']}" if self.promoted else ""

    def key(self) -> str:
        """
        Return a hash of all that is installed beside the base and the extensions from git. Two resolutions with the
        same one, on the same base, install the same files.
        """
        pins: dict[str, Pin] = {canonicalize_name(name): pin for name, pin in self.extensions.items()}
        archives = sorted([name, pin.archive, pin.hash] for name, pin in pins.items() if pin.kind == "archive")
        # What a host installs where its base is another one, and all that one of an earlier version says.
        packages = {name: version for name, version in self.packages.items() if not pins.get(name, _NO_PIN).commit}
        about = json.dumps([self.lock, archives, packages], sort_keys=True)
        return hashlib.sha256(about.encode("utf-8")).hexdigest()

    def pins(self) -> list[Pin]:
        """Return the pins of the extensions, and of the libraries that come from git."""
        return [*self.extensions.values(), *(item.pin() for item in pylock.loads(self.lock) if item.commit)]

    def to_build(self) -> Resolution:
        """Return the same as another host would build it: checkouts by their commits, whatever version they say."""
        checkouts = {canonicalize_name(name) for name, pin in self.extensions.items() if pin.commit}
        packages = {name: version for name, version in self.packages.items() if name not in checkouts}
        return evolve(self, base=Base(self.base.ckan, self.base.python), packages=packages)


@frozen
class Manifest:
    """
    A release on this host. ``resolution`` is None until it is built; ``layer`` is what it is a clone of,
    ``built_on`` the host that has built it for this one, '' where it was built here;
    ``broken_plugins`` are those that nobody enables and that cannot be imported, ``{plugin: reason}``; ``check`` is
    what its boot check said; ``steady`` are hashes of what its services were started with when they were watched and
    stayed up; ``drain`` is when its app server was told to stop, for which release, and how many seconds it took;
    ``finish_due`` is when it was switched to, '' once the stage finish has done the rest.
    """

    id: str
    state: str
    created: str = ""
    events: tuple[Mapping[str, str], ...] = ()
    env: str = ""
    site: str = ""
    by: str = ""
    job: str = ""
    resolution: Resolution | None = None
    plugins: tuple[str, ...] | None = None
    broken_plugins: Mapping[str, str] = field(factory=dict)
    configuration: str = ""
    secret_options: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(factory=dict)
    layer: str = ""
    built_on: str = ""
    disk_mb: int | None = None
    build_seconds: Mapping[str, float] = field(factory=dict)
    check: Mapping[str, Any] = field(factory=dict)
    migration: Mapping[str, Any] = field(factory=dict)
    index: Mapping[str, Any] = field(factory=dict)
    smoke: Mapping[str, Any] = field(factory=dict)
    steady: Mapping[str, str] = field(factory=dict)
    drain: Mapping[str, Any] = field(factory=dict)
    adopted: Mapping[str, str] = field(factory=dict)
    previous: str = ""
    previous_link: str = ""
    finish_due: str = ""
    came_after: str = ""
    bad_reason: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Manifest:
        """
        Read it from JSON.

        given
            What ``to_json`` returned; fields that this version does not know are left out.

        Raises ``ValueError``, ``InvalidArgument`` for what is none.
        """
        try:
            known = {name: given[name] for name in (f.name for f in fields(cls)) if name in given}
            for name in ("events", "plugins", "secret_options"):
                if name in known:
                    known[name] = tuple(known[name])
            known["resolution"] = Resolution.of(_readable(given)) if "base" in given else None
            return cls(**known)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"no manifest of a release: {exc}") from exc

    def to_json(self) -> dict[str, Any]:
        """Return it as ``release.json`` holds it; what is empty is left out."""
        found: dict[str, Any] = {"id": self.id, "state": self.state, "created": self.created}
        found["events"] = [dict(event) for event in self.events]
        for name in (f.name for f in fields(type(self)) if f.name not in (*found, "resolution")):
            value = getattr(self, name)
            if value not in (None, "", ()) and value != {}:
                found[name] = list(value) if isinstance(value, tuple) else value
        if self.resolution:
            found.update(self.resolution.to_json())
        if self.plugins is not None:
            found["plugins"] = list(self.plugins)
        return found

    def became(self, state: str, by: str = "", reason: str = "", **changes: Any) -> Manifest:
        """
        Return the manifest of the same release in another state, with a note of when, by whom and why.

        state
            The new state; where it is the one of now only the fields change.
        by
            Who asked for it.
        reason
            Why, in a line.
        changes
            Fields to change.

        Raises ``FormulaError`` when the release is not in a state that the new one may follow.
        """
        if self.state == state:
            return evolve(self, **changes)
        if state not in TRANSITIONS.get(self.state, set()):
            raise FormulaError(
                f"release {self.id} is {self.state}, so it cannot become {state}; "
                "see ckan_release.list, and deploy a new release."
            )
        return evolve(self, state=state, events=(*self.events, event(state, by, reason)), **changes)


def event(state: str, by: str, reason: str) -> dict[str, str]:
    """
    Return the note of a change of state; what is empty is left out.

    state, by, reason
        The new state, who asked for it and why.
    """
    said = {"state": state, "at": now(), "by": by, "reason": reason}
    return {name: text for name, text in said.items() if text}


def _readable(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of its resolution; one that was adopted says less."""
    # What a base says of itself may be a version that no installer takes: no other host is asked for it.
    packages = {name: version for name, version in given.get("packages", {}).items() if _VERSION.fullmatch(version)}
    return {"extensions": {}, **given, "packages": packages}


def _package(name: Any) -> str:
    if not _PACKAGE.fullmatch(_text(name)):
        raise ValueError(name)
    return str(name)


def _version(version: Any) -> str:
    if not _VERSION.fullmatch(_text(version)):
        raise ValueError(version)
    return str(version)


# All manifests of a host are read at each step, and most have one and the same lock.
@functools.lru_cache(maxsize=16)
def _lock(text: Any) -> str:
    pylock.loads(_text(text))
    return str(text)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _source(given: Mapping[str, Any]) -> dict[str, str]:
    """Where a promoted release comes from: shown to people, and nothing else is in it."""
    if given and not (given.keys() == {"env", "release"} and _ENV.fullmatch(_text(given["env"]))):
        raise ValueError(given)
    return {"env": given["env"], "release": check_id(given["release"])} if given else {}


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in given.items()}
