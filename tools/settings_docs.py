"""
Write docs/pillar*.md and docs/pillar.schema.json from the classes of the settings, _utils/ckan_deploy/settings.

Usage: `python tools/settings_docs.py` writes them; with `--check` it writes nothing and exits 1 when one of them is not
what would be written.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "_utils"), str(REPO / "tools")]

from settings_schema import schema  # noqa: E402

from ckan_deploy.settings.model import Settings  # noqa: E402
from ckan_deploy.settings.parts import Acme, CronJob, Extension, Page, Service, Worker  # noqa: E402
from ckan_deploy.settings.rules import Rule, groups, rules  # noqa: E402
from ckan_deploy.settings.together import SOCKET_LIMIT  # noqa: E402

KINDS = {
    "str": "text",
    "text": "text, several lines",
    "int": "whole number",
    "bool": "true or false",
    "list": "list of words",
    "lines": "list of text",
    "options": "dictionary",
    "variables": "dictionary of text",
    "extension": "dictionary",
    "hooks": "list of dictionaries",
    "pages": "list of paths or dictionaries",
    "service": "dictionary",
    "worker": "dictionary",
    "cronjob": "dictionary",
    "acme": "dictionary",
}
NOTE = (
    "<!-- Made by tools/settings_docs.py from _utils/ckan_deploy/settings: change it there, then run `make docs`. -->"
)
INTRO = f"""\
# Settings

{NOTE}

All settings stand in the pillar of a host under the key `ckan`. A tree to copy is in `pillar.example/`. A host needs no
more than this:

```yaml
ckan:
  env: production
  site_url: https://data.example.org
  database: {{host: db.example.org, password: ...}}
  secrets: {{session: ..., api_token: ...}}
  plugins: [mycity]
  extensions:
    ckanext-mycity:
      url: https://git.example.org/ckanext-mycity.git
      ref: 'v1.10'
```

`salt web1 ckan_settings.show` prints what a host makes of its pillar, with all defaults and with secrets masked.
`salt web1 ckan_settings.validate` names what is wrong with it, a line each; every stage of a deploy does the same
before it changes anything.

An editor can check a pillar file against [pillar.schema.json](pillar.schema.json) and complete names in it. Those with
the YAML language server (VS Code, Neovim and others) read the schema's place from a comment; its path is relative to
the file:

```yaml
# yaml-language-server: $schema=../docs/pillar.schema.json
```

This is for plain YAML; a file with Jinja in it is no YAML until Salt has rendered it. In a file that begins with
`#!yaml|gpg` the comment goes on the second line; a secret may be any string, so a PGP block passes. The schema is that
of a host's whole pillar: in a file that holds a part of it, the editor reports required settings as missing that other
files have or the master makes. Only `ckan_settings.validate` checks how settings go together.

## Rules

- **Quotes.** Put versions, branches, tags, commits and passwords in quotes. Without them YAML makes other things of
  them: `2.10` becomes the number 2.1, `0012345` a number without its zeros, `off` a no, `12:30:45` the number 45045.
  Where text is expected, anything else is refused by its key.
- **Unknown names are refused**, with the nearest known one. Names of CKAN's own options, under `ckan:config`, are free.
- **Nothing behind a key** (`keep:`) is the same as no key: the default holds.
- **Secrets.** `ckan:database:password`, `ckan:secrets:session`, `ckan:secrets:api_token`, deploy keys and tokens belong
  in a file whose first line is `#!yaml|gpg`. What is still encrypted when it reaches a host is refused by its key. No
  message holds the value of a secret. `show` also masks options of CKAN with a name such as `password`, `secret`,
  `token` or `key`, options with an `@` in their value, and user and password of an address.
- **Several sites on one machine.** Another `site` has its own home (`/usr/lib/ckan/sites/SITE`), its own base in it,
  and its own configuration, data and virtual host; the log directory and supervisor's directory are shared.
  Give it a database, a Solr core, a Redis database and a domain of its own too: these do not follow from `site`.
- **Environment variables** may hold quotes, `%` and line breaks. Refused are names that the formula sets itself or that
  are read by other programs (`HOME`, `PATH`, `LANG`, `PYTHON...`, `LD_...`, `UWSGI_...`, `GIT_...`), and `CKAN_...`,
  which would win over the ini.
- **Paths**, `ckan:web:*_conf`, `ckan:tls:certificate` and `ckan:tls:key` among them, are absolute and without `..`,
  blanks or any of `"'{{}}$;%,`. The path of a release's socket has a limit of {SOCKET_LIMIT} bytes.
  `root` is put before every default path, and before none that is given.
- **For one deploy** only `extensions` may differ: `extensions: {{ckanext-mycity: {{ref: fix-42}}}}` beside `env`.
"""
EXTENSIONS = """\
## `ckan:extensions:NAME`

One entry per extension; `NAME` is the name of its package, such as `ckanext-harvest`. Each has one origin: git (`url`
and `ref`), the package index (`version`), or an archive (`archive` and `hash`). No address has a password in it.
[extensions.md](extensions.md) says more.

"""

SERVICES = """\
## `ckan:services:NAME`

One entry per service: a long-running command of CKAN or of an extension, in the current release, under supervisor; with
a `command` or with `queues`. [services.md](services.md) says more.

"""
WORKERS = """\
## `ckan:workers:NAME`

The short form of a service with `queues`, `default: {}` at least: `ckan jobs worker` of the current release.
No worker and service have the same name.

"""
CRONS = """\
## `ckan:cron:NAME`

One entry per cron job, which runs in the current release. Nothing in it may be secret: it stands in a file that all
users of the host can read.

"""
SMOKE = """\
## `ckan:web:smoke`

A list. An item is a path, which must answer 200, or a dictionary with these settings.
[app-servers.md](app-servers.md#smoke-pages) says what else a release is asked for.

"""


ACME = """\
## `ckan:tls:acme`

A certificate that certbot gets and renews: [web-server.md](web-server.md#certificates) says more.

"""


# The pages beside the first, and what of the settings each of them has; the last one has all others, too.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pillar-extensions": (
        "Settings of extensions and builds",
        ("extensions", "base", "git", "installer", "build"),
    ),
    "pillar-web": ("Settings of the web server", ("web", "web:smoke", "tls", "tls:acme")),
    "pillar-database": (
        "Settings of the database and the search index",
        ("database", "datastore", "migration", "backup", "search"),
    ),
    "pillar-services": (
        "Settings of services, and of the host",
        ("services", "workers", "cron", "secrets", "paths", "storage", "manage"),
    ),
}


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    sections = {
        "extensions": EXTENSIONS + _table(Extension), "services": SERVICES + _table(Service),
        "workers": WORKERS + _table(Worker), "cron": CRONS + _table(CronJob), "web:smoke": SMOKE + _table(Page),
        "tls:acme": ACME + _table(Acme),
        **{name: _section(f"ckan:{name}", cls) for name, cls in groups(Settings).items()},
    }  # fmt: skip
    made, index = {"pillar": ""}, ["## Groups of settings", "", "| settings | page |", "|---|---|"]
    named = {name for _, names in PAGES.values() for name in names}
    for page, (title, names) in PAGES.items():
        more = sorted(set(sections) - named) if page == list(PAGES)[-1] else []
        first = f"# {title}\n\n{NOTE}\n\nThe rules for all settings are in [pillar.md](pillar.md#rules).\n"
        made[page] = "\n".join([first, *(sections[name] for name in [*names, *more])])
        index += [f"| `ckan:{name}` | [{title}]({page}.md) |" for name in [*names, *more]]
    made["pillar"] = "\n".join([INTRO, _section("ckan", Settings), *index]) + "\n"
    return made


def _section(key: str, cls: type) -> str:
    return f"## `{key}`\n\n{cls.__doc__}\n\n" + _table(cls)


def _table(cls: type) -> str:
    lines = ["| setting | type | default | required | what it is |", "|---|---|---|---|---|"]
    for name, rule in rules(cls).items():
        required = "yes" if rule.required else ""
        lines.append(f"| `{name}` | {_kind(rule)} | {_default(rule)} | {required} | {_text(rule)} |")
    return "\n".join(lines) + "\n"


def _kind(rule: Rule) -> str:
    if rule.choices:
        return " or ".join(f"`{choice}`" for choice in rule.choices)
    kind = ("word, or " if rule.one else "") + KINDS[rule.kind] + (", secret" if rule.secret else "")
    # Seconds, counts and megabytes from 0 or 1 up need no word.
    return f"{kind}, {rule.least} or more" if rule.least > 1 else kind


def _default(rule: Rule) -> str:
    if rule.required:
        return ""
    if rule.default in ("", (), {}, Acme()):
        return "empty"
    if isinstance(rule.default, tuple):
        return f"`{list(rule.default)}`"
    value = str(rule.default).lower() if isinstance(rule.default, bool) else rule.default
    quoted = f"'{value}'" if rule.kind == "str" and str(value).isdigit() else value
    return f"`{quoted}`"


def _text(rule: Rule) -> str:
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", rule.text.replace("|", "\\|"))


def main(arguments: list[str]) -> int:
    """Write the files, or check them; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: settings_docs.py [--check]", file=sys.stderr)
        return 2
    made = {
        **{REPO / f"docs/{name}.md": text for name, text in pages().items()},
        REPO / "docs/pillar.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if arguments:
        for path in stale:
            print(f"{path.relative_to(REPO)} is not current; run make docs", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
