"""
The base virtualenv that releases are clones of: the one that the official install made, or one made from a version.

A base that is found is adopted as it is and never changed. One that is made stands under ``shared/bases``, named after
all that it is made from, so that another CKAN version is another base and the releases of the old one keep theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_base"

# Written last, so that a base without it was never finished.
DONE = ".ckan-base.json"


def __virtual__() -> str:
    return __virtualname__


def path(settings: dict) -> str:
    """
    Return where the base of the settings stands, or will stand.

    settings
        The settings.

    Raises ``CommandExecutionError`` when ``ckan:base:python`` does not run.

    CLI Example: not for the command line; ``ckan_release.plan`` names the base.
    """
    if not settings["base"]["version"]:
        return settings["paths"]["base"]
    made_from = json.dumps([_requirements(settings), _python_version(settings)])
    key = hashlib.sha256(made_from.encode("utf-8")).hexdigest()[:8]
    name = f"ckan-{settings['base']['version']}-py{_python_version(settings)}-{key}"
    return os.path.join(settings["paths"]["shared"], "bases", name)


def find(settings: dict) -> dict | None:
    """
    Return the base as ``describe`` does if it is there, else None.

    settings
        The settings.

    Raises ``CommandExecutionError`` when there is a virtualenv without CKAN.

    CLI Example: not for the command line; ``ckan_release.plan`` names the base.
    """
    place = path(settings)
    if not os.path.exists(os.path.join(place, "bin", "python")):
        return None
    if settings["base"]["version"] and not os.path.exists(os.path.join(place, DONE)):
        return None
    found = describe(place)
    if not found:
        raise CommandExecutionError(
            f"{place} is a virtualenv without CKAN; install CKAN into it, or set ckan:base:version to have one made."
        )
    return found


def describe(place: str) -> dict | None:
    """
    Say what a virtualenv has.

    place
        The virtualenv.

    Returns ``{"path", "ckan": version, "python": "3.11"}``, or None without CKAN.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_base.describe /usr/lib/ckan/default
    """
    found = __salt__["ckan_packages.freeze"](place).get("ckan")
    if not found:
        return None
    version = __salt__["ckan_venv.interpreter"](place)["version"]
    return {"path": place, "ckan": found, "python": ".".join(version.split(".")[:2])}


def ensure(settings: dict) -> dict:
    """
    Return the base as ``find`` does, after making it where ``ckan:base:version`` says so.

    settings
        The settings.

    Raises ``CommandExecutionError`` when there is none and none can be made.

    CLI Example: not for the command line; the highstate and every deploy call it.
    """
    found = find(settings)
    if found:
        return found
    place = path(settings)
    if not settings["base"]["version"]:
        raise CommandExecutionError(
            f"there is no virtualenv in {place}; install CKAN there, or set ckan:base:version to have one made."
        )
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with _locked(f"{place}.lock"):
        found = find(settings)  # another deploy may have made it while this one waited
        if not found:
            _make(place, settings)
            found = find(settings)
    return found


def _make(place: str, settings: dict) -> None:
    installer = __salt__["ckan_build.installer"](settings)
    shutil.rmtree(place, ignore_errors=True)  # what a killed run left
    try:
        __salt__["ckan_venv.create"](place, python=settings["base"]["python"])
        if installer["user"]:
            _give(place, installer["user"])
        # Copied, not linked: the cache belongs to the build user, who must not be able to change a base.
        __salt__["ckan_packages.install"](
            place, [{"name": "base", "requirement": item} for item in _requirements(settings)], None,
            {**installer, "link": "copy"},
        )  # fmt: skip
        __salt__["ckan_venv.compile"](place, user=installer["user"] or None)
        if installer["user"]:
            _give(place, "root")
        with open(os.path.join(place, DONE), "x", encoding="utf-8") as handle:
            json.dump({"requirements": _requirements(settings), "python": _python_version(settings)}, handle)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _requirements(settings: dict) -> list[str]:
    server = ["uwsgi"] if settings["web"]["app"] == "uwsgi" else []
    return [f"ckan[requirements]=={settings['base']['version']}", *server, *sorted(settings["base"]["packages"])]


def _python_version(settings: dict) -> str:
    done = __salt__["cmd.run_all"](
        [settings["base"]["python"], "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        python_shell=False, output_loglevel="quiet", ignore_retcode=True,
    )  # fmt: skip
    if done["retcode"] != 0:
        raise CommandExecutionError(f"{settings['base']['python']} does not run; correct ckan:base:python.")
    return done["stdout"].strip()


def _give(place: str, user: str) -> None:
    """Give a tree to a user; links are not followed."""
    import pwd

    entry = pwd.getpwnam(user)
    for folder, folders, files in os.walk(place):
        for name in [".", *folders, *files]:
            os.chown(os.path.join(folder, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)


@contextlib.contextmanager
def _locked(lock: str):
    with open(lock, "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
