"""
Write the reference of the functions, docs/functions-*.md, from the docstrings of _modules and _runners.

Usage: `python tools/functions_docs.py` writes the pages; with `--check` it writes nothing and exits 1 when one of them
is not what would be written.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made by tools/functions_docs.py from the docstrings of the modules: change them, then run `make docs`. -->"


class Page(NamedTuple):
    """A page of the reference: what it says first, and the modules whose functions it has."""

    title: str
    intro: str
    modules: tuple[str, ...]


PAGES = {
    "functions-master": Page(
        "Commands on the master",
        "`salt-run` runs these on the master. `--out json` gives a program the data. A failure ends with exit code 1 "
        "([exit codes](exit-codes.md)).",
        ("_runners/ckan.py",),
    ),
    "functions-release": Page(
        "Commands for the releases of a host",
        "`salt HOST FUNCTION` runs these on one host. A failure ends with exit code 1.",
        ("_modules/ckan_release.py",),
    ),
    "functions-host": Page(
        "Commands for the rest of a host",
        "`salt HOST FUNCTION` runs these on one host: settings, app server, services, web server, database dumps, "
        "search index and maintenance mode. A failure ends with exit code 1.",
        (
            "_modules/ckan_settings.py", "_modules/ckan_app.py", "_modules/ckan_backup.py", "_modules/ckan_front.py",
            "_modules/ckan_index.py", "_modules/ckan_jobs.py", "_modules/ckan_maintenance.py",
            "_modules/ckan_package.py", "_modules/ckan_version.py", "_modules/ckan_web.py",
        ),
    ),
    "functions-stages": Page(
        "Functions of the stages",
        "The orchestrations call these, a stage at a time. You rarely type them; [a failed deploy](failed-deploys.md) "
        "says when.",
        ("_modules/ckan_release_stages.py",),
    ),
    "functions-fleet": Page(
        "Functions of a fleet",
        "The orchestrations call these on the master and on all hosts, besides [those of the stages]"
        "(functions-stages.md). You rarely type them.",
        ("_runners/ckan_fleet.py", "_modules/ckan_plan.py", "_modules/ckan_schema.py"),
    ),
}  # fmt: skip


def page(name: str) -> str:
    """Return the whole text of a page."""
    title, intro, modules = PAGES[name]
    parts = [f"# {title}\n\n{NOTE}\n\n{intro}\n"]
    for module in modules:
        parts += section(REPO / module)
    return "\n".join(parts)


def section(path: Path) -> Iterator[str]:
    """Yield a text for each public function of a module, in the order of its file."""
    text = path.read_text(encoding="utf-8")
    named = re.search(r'^__virtualname__ = "(\w+)"', text, re.M)
    prefix = named[1] if named else path.stem
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name.rstrip('_')}"
            yield f"## {name}\n\n`{name}({arguments(node)})`\n\n{markdown(ast.get_docstring(node) or '')}\n"


def arguments(function: ast.FunctionDef) -> str:
    """Return the parameters of a function with their defaults, as one writes them."""
    names = [argument.arg for argument in function.args.args]
    bare: list[ast.expr | None] = [None] * (len(names) - len(function.args.defaults))
    written = [
        name if default is None else f"{name}={ast.unparse(default)}"
        for name, default in zip(names, [*bare, *function.args.defaults], strict=True)
    ]
    return ", ".join([*written, *(["..."] if function.args.kwarg else [])])


def markdown(docstring: str) -> str:
    """Return a docstring, as Salt's modules have them, in Markdown."""
    docstring = re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", docstring.replace("``", "`"))
    made, blocks = [], re.split(r"\n\n+(?=\S)", docstring)
    for block in blocks:
        first, _, rest = block.partition("\n")
        if first == "CLI Example:":
            continue
        if first.startswith(".. code-block::"):
            lines = [line.removeprefix("    ") for line in rest.strip("\n").splitlines()]
            made.append("\n".join(["```bash", *lines, "```"]))
        elif re.match(r"[\w, ]+\n    \S", block):
            made.append("\n".join(parameters(block)))
        else:
            made.append(block)
    return "\n\n".join(made)


def parameters(block: str) -> Iterator[str]:
    """Yield a line for each parameter of a block of a docstring."""
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?|\n(?=    ))+)", block, re.M):
        quoted = ", ".join(f"`{name}`" for name in names.split(", "))
        yield f"- {quoted}: {' '.join(text.split())}"


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: functions_docs.py [--check]", file=sys.stderr)
        return 2
    made = {REPO / f"docs/{name}.md": page(name) for name in PAGES}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if arguments:
            print(f"{path.relative_to(REPO)} is not current; run make docs", file=sys.stderr)
        else:
            path.write_text(made[path], encoding="utf-8")
    return 1 if stale and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
