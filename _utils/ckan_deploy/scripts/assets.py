"""
The web assets of a release: built, and shared with those of another release. A part of the script ``probe``.
"""

import filecmp
import os
import sys

# What a note of webassets has at most, in bytes.
NOTE_SIZE = 512


def build_assets(result: dict, live: str) -> None:
    """
    Build CKAN's bundles of styles and scripts now: built by several processes at once, at the first request of each,
    they take one another's notes away, and visitors get errors.
    """
    try:
        from ckan.lib.webassets_tools import env
    except ImportError:
        return
    from webassets.exceptions import BundleError

    built = 0
    for bundle in env:
        try:
            bundle.urls()
            built += 1
        except (BundleError, OSError, ValueError) as exc:
            result["warnings"].append(f"a bundle of web assets cannot be built: {one_line(exc)}")
    result["assets"] = built
    drop_results(os.path.join(env.directory, ".webassets-cache"))
    if live:
        share(env.directory, live)


def share(folder: str, other: str) -> None:
    """
    Let the web assets of this release be those of another one, where they are the same: most of them are, and they are
    a fifth of a release. Each has a hash of its content in its name, so nobody writes another content into one.
    """
    if not os.path.realpath(folder).startswith(os.path.realpath(sys.prefix) + "/"):
        return
    for place, _, names in os.walk(folder):
        there = os.path.join(other, os.path.relpath(place, folder))
        for name in names:
            mine, its, draft = os.path.join(place, name), os.path.join(there, name), os.path.join(place, f".{name}.new")
            try:
                if os.path.islink(its) or os.path.samefile(mine, its) or not filecmp.cmp(mine, its, shallow=False):
                    continue
                os.link(its, draft)
                os.replace(draft, mine)
            except OSError:  # it is not there, or on another file system
                continue


def drop_results(cache: str) -> None:
    """
    Remove from a release what steps of a build have made: nobody asks for it again, and it is a third of all. The small
    files are notes, such as which version a bundle has; without them each process would build it anew.
    """
    if not os.path.realpath(cache).startswith(os.path.realpath(sys.prefix) + "/") or not os.path.isdir(cache):
        return
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        if os.path.getsize(path) > NOTE_SIZE:
            os.unlink(path)
