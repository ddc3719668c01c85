"""
What a release is made of: a clone of the base, a checkout per extension, one install of all of them, the ini.

Nothing here knows of states, of the link or of web servers.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_build"

REQUIREMENT_FILES = ("requirements.txt", "pip-requirements.txt")
AT_ONCE = 8


def __virtual__() -> str:
    return __virtualname__


def obstacles(settings: dict, release: str) -> list[str]:
    """
    Say what keeps a release from being made here: no base, older than what is there, disk, supervisor.

    settings
        The settings.
    release
        The id of the release to make.

    Returns a list of sentences, empty when nothing is in the way.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    paths = settings["paths"]
    problems = []
    if not os.path.exists(os.path.join(paths["base"], "bin", "python")):
        problems.append(f"there is no virtualenv in {paths['base']}; run state.apply ckan first")
    newest = [manifest["id"] for manifest in __salt__["ckan_store.all_manifests"](paths)][-1:]
    if newest and newest[0] >= release:
        problems.append(f"release {newest[0]} here is not older than {release}; compare the clocks of master and host")
    free = shutil.disk_usage(_existing(paths["releases"])).free // 2**20
    if free < settings["disk_free_mb"]:
        problems.append(
            f"{free} MB are free under {paths['releases']}, ckan:disk_free_mb asks for {settings['disk_free_mb']}; "
            "make room (ckan_release.prune)"
        )
    front = __salt__["ckan_web.front_problem"](settings)
    return [*problems, front] if front else problems


def resolve(settings: dict) -> dict:
    """
    Ask the origins of all extensions, at once, which commits their refs stand for.

    settings
        The settings.

    Returns ``{extension: commit}``. Raises ``CommandExecutionError`` that names the first one that cannot be had.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    ask = __salt__["ckan_source.resolve"]
    wanted = settings["extensions"]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {name: pool.submit(ask, wanted[name]["url"], wanted[name]["ref"]) for name in wanted}
        return {name: job.result() for name, job in jobs.items()}


def fill(path: str, settings: dict, commits: dict | None = None) -> dict:
    """
    Fill the directory of a new release.

    path
        The directory of the release; holds its manifest and nothing else.
    settings
        The settings.
    commits
        The commit of each extension; refs are resolved here where one is missing.

    Returns what the manifest says of it: ``{"base", "extensions", "packages", "plugins", "configuration"}``. Raises
    ``CommandExecutionError``.

    CLI Example: not for the command line; use ``ckan_release.build``.
    """
    base = settings["paths"]["base"]
    __salt__["ckan_venv.clone"](base, path, link=settings["link"])
    extensions = _checkouts(settings, path, commits or {})
    _install(settings, path)
    __salt__["ckan_venv.compile"](path)
    ini = __salt__["ckan_app.write_ini"](path, settings)
    packages = __salt__["ckan_venv.freeze"](path)
    return {
        "base": {
            "path": base,
            "ckan": packages.get("ckan", ""),
            "python": __salt__["ckan_venv.interpreter"](path)["version"],
        },
        "extensions": extensions,
        "packages": packages,
        "plugins": settings["plugins"],
        "configuration": ini["hash"],
    }


def _checkouts(settings: dict, path: str, commits: dict) -> dict:
    """Check out all extensions at once; returns what the manifest says of each."""
    os.makedirs(os.path.join(path, "src"), exist_ok=True)
    mirrors = os.path.join(settings["paths"]["shared"], "mirrors")
    # Looked up here, not in the threads: Salt's loader finds its context only in the calling thread.
    resolve_ref, check_out = __salt__["ckan_source.resolve"], __salt__["ckan_source.checkout"]

    def one(name: str, extension: dict) -> dict:
        commit = commits.get(name) or resolve_ref(extension["url"], extension["ref"])
        target = os.path.join(path, "src", name)
        if os.path.exists(target):
            shutil.rmtree(target)  # the base brought an older checkout of its own
        got = check_out(extension["url"], commit, target, mirrors)
        return {
            "kind": "git",
            "url": extension["url"],
            "ref": extension["ref"],
            "commit": got["commit"],
            "subject": got["subject"],
        }

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {name: pool.submit(one, name, extension) for name, extension in settings["extensions"].items()}
    return {name: job.result() for name, job in jobs.items()}


def _install(settings: dict, path: str) -> None:
    """Install all extensions with their requirements in one resolution, held to the versions of the base."""
    installer = settings["installer"]
    constraints = os.path.join(path, "constraints.txt")
    with open(constraints, "w", encoding="utf-8") as handle:
        handle.writelines(f"{name}=={version}\n" for name, version in __salt__["ckan_venv.freeze"](path).items())
    editable, files = [], []
    for name, extension in settings["extensions"].items():
        source = os.path.join(path, "src", name)
        editable.append(source)
        wanted = extension["requirements"]
        names = REQUIREMENT_FILES if wanted == "auto" else () if wanted == "none" else (wanted,)
        found = [os.path.join(source, file) for file in names if os.path.isfile(os.path.join(source, file))]
        if wanted not in ("auto", "none") and not found:
            raise CommandExecutionError(f"{name} has no {wanted}; correct ckan:extensions:{name}:requirements.")
        files += found[:1]
    needs_server = settings["web"]["server"] != "none" and not os.path.exists(os.path.join(path, "bin", "uwsgi"))
    requirements = ["uwsgi"] if needs_server else []
    if not (editable or files or requirements):
        return
    __salt__["ckan_venv.install"](
        path,
        requirements=requirements,
        requirement_files=files,
        editable=editable,
        constraints=constraints,
        cache_dir=os.path.join(settings["paths"]["shared"], "cache"),
        uv=installer["uv"],
        index_url=installer["index_url"],
        find_links=installer["find_links"],
        offline=installer["offline"],
    )


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
