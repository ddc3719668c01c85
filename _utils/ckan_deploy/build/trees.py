"""
What is made of a checkout before its wheel is built: by the commands that the pillar lists for an extension, and of
translations that nobody has compiled.

Both work on a copy, in the sandbox. Root takes files and links of that copy into a tree of its own, beside the
checkout, once for each commit and list of commands. The tree then stands for the checkout: its wheel is built of it,
and a release imports it.
"""

from __future__ import annotations

import grp
import hashlib
import json
import logging
import os
import pwd
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from ckan_deploy.build import virtualenv
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.sources.origins import Prepared
from ckan_deploy.system import files, foreign, places, processes

log = logging.getLogger(__name__)
# What a tree may hold: each release has a copy of it.
MOST_BYTES = 2**30
# Git's own: a build's may name programs that git would run.
GIT = ".git"
# How both scripts begin: the first that is run makes a copy of the sources.
COPY = """
import json, os, shutil, subprocess, sys
given = json.loads(sys.argv[1])
if given["copy"]:
    shutil.copytree(given["source"], "src", symlinks=True)
top = os.path.join(os.path.abspath("src"), given["subdirectory"])
"""
RUN = (
    COPY
    + """
for number, command in enumerate(given["commands"]):
    said = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    code = subprocess.run(["sh", "-c", command], cwd=top, check=False, **said).returncode
    if code:
        sys.stdout.flush()
        print("\\nENDED " + json.dumps([number, code]), flush=True)
        sys.exit(1)
"""
)
# By the Python of the base: Babel is CKAN's own dependency. A catalogue that has all of the text is left as it is.
COMPILE = (
    COPY
    + """
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po
def told(catalog):
    plain = lambda value: value if isinstance(value, str) else tuple(value)
    kept = [message for message in catalog if message.id and any(message.string) and not message.fuzzy]
    return {(message.context, plain(message.id)): plain(message.string) for message in kept}
def compile(text):
    with open(text, "rb") as source:
        catalog = read_po(source)
    compiled = text[:-3] + ".mo"
    if not told(catalog):
        return
    if os.path.isfile(compiled):
        with open(compiled, "rb") as source:
            have = told(read_mo(source))
        if all(have.get(key) == string for key, string in told(catalog).items()):
            return
    elif os.path.lexists(compiled):
        return
    with open(compiled + ".new", "wb") as target:
        write_mo(target, catalog)
    os.rename(compiled + ".new", compiled)
    print("\\nMADE " + json.dumps(compiled))
for folder, folders, names in os.walk("src"):
    folders.sort()
    if os.path.basename(folder) == "LC_MESSAGES" and "i18n" in folder.split(os.sep):
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith(".po") and os.path.isfile(path) and not os.path.islink(path):
                try:
                    compile(path)
                except Exception as exc:
                    print("\\nLEFT " + json.dumps(path + ": " + " ".join(str(exc).split())))
"""
)


def built(item: Prepared, commands: Sequence[str], builder: Builder) -> Prepared:
    """
    Run the commands of an extension, and compile its translations, where that was not done before.

    item
        What the extension is made from: a checkout.
    commands
        Lines of sh.
    builder
        Builds for the Python of the base.

    Returns the same, with another checkout where something was made. Raises ``FormulaError`` with what a command says.
    """
    top, sandbox = f"{item.checkout}.wheels", builder.sandbox
    facts = [item.subdirectory, list(commands), virtualenv.home_python(builder.path), sandbox.kind, sandbox.network]
    tree = f"{top}/tree-{hashlib.sha256(json.dumps(facts).encode('utf-8')).hexdigest()[:16]}"
    if not _is_known(tree):
        os.makedirs(top, mode=0o755, exist_ok=True)
        with files.locked(f"{tree}.lock"):
            # Another one may have come first.
            if not _is_known(tree) and not _changes(item, commands, builder, tree):
                files.write(f"{tree}.same", "")
    if os.path.exists(f"{tree}.same"):
        return item
    moved = (os.path.join(tree, os.path.relpath(file, item.checkout)) for file in item.files)
    return evolve(item, checkout=tree, files=tuple(file for file in moved if os.path.isfile(file)))


def _changes(item: Prepared, commands: Sequence[str], builder: Builder, tree: str) -> bool:
    """Make a tree where there is anything to do; False where it would be what the checkout is."""
    return bool(commands or _has_translations(item.checkout)) and _make(item, commands, builder, tree)


def _is_known(tree: str) -> bool:
    """Whether it was made, or is known to be what the checkout is."""
    return os.path.isdir(tree) or os.path.exists(f"{tree}.same")


def _make(item: Prepared, commands: Sequence[str], builder: Builder, tree: str) -> bool:
    """Make a tree; False where it would be what the checkout is."""
    given = {"source": item.checkout, "subdirectory": item.subdirectory, "commands": list(commands), "copy": True}
    with places.temporary(builder.installer.shared, "build") as work:
        place = builder.place(work)
        if commands:
            _run(given, builder, place)
        made = _compile({**given, "copy": not commands}, builder, place)
        if not commands and not made:
            return False
        draft = os.path.join(work, "tree")
        os.mkdir(draft, 0o755)
        _take(os.path.join(place, "src"), draft, builder.sandbox.user)
        _put_git(item.checkout, draft)
        _refuse_links(item.checkout, draft)
        files.sync_tree(draft)
        os.rename(draft, tree)
        files.sync_directory(os.path.dirname(tree))
    return True


def _run(given: Mapping[str, Any], builder: Builder, place: str) -> None:
    commands: list[str] = given["commands"]
    python = virtualenv.home_python(builder.path)
    said = builder.sandbox.run(
        [python, "-I", "-B", "-c", RUN, json.dumps(given)], [given["source"]], place, network=True
    )
    if said.retcode == 0:
        return
    late = builder.sandbox.over_time(said)
    if late:
        raise FormulaError(f"its build ({'; '.join(commands)}) {late}.")
    ended = re.search(r"^ENDED \[(\d{1,4}), (-?\d{1,4})\]$", said.stdout, re.MULTILINE)
    told = processes.tail(said._replace(stdout=re.sub(r"^ENDED .*$", "", said.stdout, flags=re.MULTILINE)))
    if ended and int(ended[1]) < len(commands):
        raise FormulaError(f"its build command {commands[int(ended[1])]!r} ended with {ended[2]}: {told}.")
    raise FormulaError(f"its build commands cannot be run: {told}.")


def _compile(given: Mapping[str, Any], builder: Builder, place: str) -> bool:
    """Compile translations; returns whether there is a new one. What cannot be compiled stops no deploy."""
    python = f"{builder.path}/bin/python"
    said = builder.sandbox.run(
        [python, "-I", "-B", "-c", COMPILE, json.dumps(given)], [given["source"], builder.path], place
    )
    if said.retcode != 0:
        log.warning("translations of %s were not compiled: %s", given["source"], processes.tail(said, 1))
    for line in said.stdout.splitlines():
        if line.startswith("LEFT "):
            log.warning("a translation of %s was not compiled: %s", given["source"], line[5:205])
    return any(line.startswith("MADE ") for line in said.stdout.splitlines())


def _has_translations(checkout: str) -> bool:
    for folder, folders, names in os.walk(checkout):
        folders[:] = [name for name in folders if name != GIT]
        if os.path.basename(folder) == "LC_MESSAGES" and "i18n" in os.path.relpath(folder, checkout).split(os.sep):
            if any(name.endswith(".po") for name in names):
                return True
    return False


def _take(source: str, target: str, user: str) -> None:
    """Copy what a build has left into a directory of root's: plain files and links, without its part of git."""
    who = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    group = grp.getgrgid(who.pw_gid).gr_name
    hint = "let the last command remove what the portal does not need, such as node_modules"
    try:
        foreign.copy(source, target, who.pw_name, group, most=MOST_BYTES, hint=hint)
    except (FormulaError, OSError) as exc:
        why = sentence(exc).replace(source, "its copy").rstrip(".")
        raise FormulaError(f"what its build has made is not taken: {why}.") from exc
    for folder, folders, names in os.walk(target):
        for name in [name for name in folders if name in (GIT, "__pycache__")]:
            folders.remove(name)
            path = os.path.join(folder, name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                shutil.rmtree(path)
        if GIT in names:
            os.unlink(os.path.join(folder, GIT))


def _put_git(checkout: str, tree: str) -> None:
    """Put git's own part of the checkout, and of its submodules, into the tree."""
    for folder, folders, names in os.walk(checkout):
        inner = os.path.relpath(folder, checkout)
        place = os.path.normpath(os.path.join(tree, inner))
        if os.path.isdir(place) and os.path.realpath(place) == os.path.realpath(tree) + place[len(tree) :]:
            if GIT in folders:
                shutil.copytree(os.path.join(folder, GIT), os.path.join(place, GIT), symlinks=True)
            elif GIT in names:
                shutil.copy2(os.path.join(folder, GIT), os.path.join(place, GIT))
        folders[:] = [name for name in folders if name != GIT]


def _refuse_links(checkout: str, tree: str) -> None:
    """Refuse links that a build has made and that lead out of the tree."""
    top = os.path.realpath(tree)
    for inner in _links(tree):
        path, before = os.path.join(tree, inner), os.path.join(checkout, inner)
        target = os.readlink(path)
        if os.path.islink(before) and os.readlink(before) == target:
            continue
        if target.startswith("/") or not f"{os.path.realpath(path)}/".startswith(f"{top}/"):
            raise FormulaError(f"its build has made the link {inner}, which leads out of the checkout; correct it.")


def _links(tree: str) -> Iterator[str]:
    for folder, folders, names in os.walk(tree):
        if folder == tree and GIT in folders:
            folders.remove(GIT)
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                yield os.path.relpath(path, tree)
