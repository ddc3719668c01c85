"""What a host has packed for others, as it goes through arguments of jobs: nothing in it is a path of theirs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from ckan_deploy.build import layers
from ckan_deploy.errors import InvalidArgument

# The name of an archive: environment, site, layer or release, and the beginning of its hash.
NAME = re.compile(r"[a-z0-9_.-]+\.(?P<what>[0-9a-f]{16}|[0-9]{14}Z)\.[0-9a-f]{16}\.tar\.gz")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@frozen
class Archive:
    """An archive by its name, with its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, given: Any) -> Archive:
        """Read it from JSON. Raises ``ValueError`` and the like for what is none."""
        made = cls(given["name"], given["size"], given["sha256"])
        if not (NAME.fullmatch(made.name) and type(made.size) is int and _SHA256.fullmatch(made.sha256)):
            raise ValueError(given)
        return made


@frozen
class Shipment:
    """
    What a host has packed: which ``host``, and what that is (``system.facts``); the ``key`` of the layer and its
    archive, and that of the release; where the two stood there (``layer_path``, ``release_path``).
    """

    host: str
    facts: Mapping[str, str]
    key: str
    layer: Archive
    layer_path: str
    release: Archive
    release_path: str

    @classmethod
    def of(cls, given: Any) -> Shipment:
        """
        Read it from JSON: an argument of a job.

        given
            What ``to_json`` returned.

        Raises ``InvalidArgument`` for what is none.
        """
        try:
            host, key = given["host"], given["key"]
            places = [given["layer_path"], given["release_path"]]
            if not (host and "/" not in host and layers.KEY.fullmatch(key) and all(map(_is_place, places))):
                raise ValueError(given)
            about = {str(name): str(value) for name, value in given["facts"].items()}
            layer, release = Archive.of(given["layer"]), Archive.of(given["release"])
            return cls(host, about, key, layer, places[0], release, places[1])
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise InvalidArgument("shipped is not what ckan_release.pack returned; deploy again.") from exc

    def to_json(self) -> dict[str, Any]:
        """Return it as arguments of jobs have it. Nothing in it is secret."""
        return attrs.asdict(self)


def check_key(given: Any) -> str:
    """
    Return the name of a layer that came as an argument.

    given
        The argument.

    Raises ``InvalidArgument`` for what is none.
    """
    if not isinstance(given, str) or not layers.KEY.fullmatch(given):
        raise InvalidArgument(f"layer is {given!r}, which is no name of a layer; take what the plan says.")
    return given


def _is_place(path: Any) -> bool:
    # The top would make every path one of it.
    return os.path.isabs(path) and path != "/" and os.path.normpath(path) == path
