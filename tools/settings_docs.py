"""
Write docs/pillar.md from the table of settings in _modules/ckan_settings.py.

Usage: `python tools/settings_docs.py` writes the page; with `--check` it writes nothing and exits 1 when the page on
disk is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs/pillar.md"
sys.path.insert(0, str(REPO))

from _modules.ckan_settings import CRON, EXTENSION, SCHEMA, SOCKET_LIMIT, WORKER, Setting  # noqa: E402

KINDS = {
    "str": "text",
    "text": "text, several lines",
    "int": "whole number",
    "bool": "true or false",
    "list": "list of words",
    "lines": "list of text",
    "options": "dictionary",
    "extensions": "dictionary",
    "hooks": "list of dictionaries",
    "workers": "dictionary",
    "cron": "dictionary",
    "any": "",
}
GROUPS = {
    "": "Settings outside any group",
    "paths": "Paths; `{root}`, `{home}` and `{site}` stand for what these settings are",
    "base": "The base virtualenv that releases are cloned from",
    "git": "Git servers",
    "installer": "How packages are installed",
    "database": "PostgreSQL",
    "datastore": "The database of the datastore",
    "migration": "How the database is migrated: [database.md](database.md)",
    "search": "The search index: [database.md](database.md)",
    "backup": "Dumps of the database: [database.md](database.md)",
    "secrets": "Secrets",
    "web": "The web server, the app servers and the health check",
    "tls": "https; the certificate is put on the host by others",
    "manage": "What the highstate may touch of the system",
}
INTRO = f"""\
# Settings

<!-- Made by tools/settings_docs.py from _modules/ckan_settings.py: change it there, then run `make docs`. -->

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
  and its own configuration, data and file of the web server; the log directory and supervisor's directory are shared.
  Give it a database, a Solr core, a Redis database and a domain of its own too: these do not follow from `site`.
- **Paths**, `ckan:web:*_conf`, `ckan:tls:certificate` and `ckan:tls:key` among them, are absolute and without `..`,
  blanks or any of `"'{{}}$;%,`. The path of a release's socket has a limit of {SOCKET_LIMIT} bytes.
  `root` is put before every default path, and before none that is given.
- **For one deploy** only `extensions` may differ: `extensions: {{ckanext-mycity: {{ref: fix-42}}}}` beside `env`.
"""
EXTENSIONS = """\
## `ckan:extensions:NAME`

One entry an extension; `NAME` is the name of its package, such as `ckanext-harvest`. Each has one origin: git (`url`
and `ref`), the package index (`version`), or an archive (`archive` and `hash`). No address has a password in it.
[extensions.md](extensions.md) says more.

"""

WORKERS = """\
## `ckan:workers:NAME`

One entry a worker, `default: {}` at the least: `ckan jobs worker` of the release that is current, under supervisor.
[operations.md](operations.md#workers-and-cron) says more.

"""
CRONS = """\
## `ckan:cron:NAME`

One entry a line of cron, which runs in the release that is current. Nothing in it may be secret: it stands in a file
that all users of the host can read.

"""


def page() -> str:
    """Return the whole text of the page."""
    parts = [INTRO]
    assert {name.rpartition(":")[0] for name in SCHEMA} == GROUPS.keys()
    for group, title in GROUPS.items():
        names = [name for name in SCHEMA if name.rpartition(":")[0] == group]
        key = f"ckan:{group}" if group else "ckan"
        parts.append(f"## `{key}`\n\n{title}.\n\n" + _table({name.rpartition(":")[2]: SCHEMA[name] for name in names}))
        if not group:
            parts += [EXTENSIONS + _table(EXTENSION), WORKERS + _table(WORKER), CRONS + _table(CRON)]
    return "\n".join(parts)


def _table(settings: dict[str, Setting]) -> str:
    lines = ["| setting | type | default | required | what it is |", "|---|---|---|---|---|"]
    for name, setting in settings.items():
        required = "yes" if setting.required else ""
        lines.append(f"| `{name}` | {_kind(setting)} | {_default(setting)} | {required} | {_text(setting)} |")
    return "\n".join(lines) + "\n"


def _kind(setting: Setting) -> str:
    if setting.choices:
        return " or ".join(f"`{choice}`" for choice in setting.choices)
    kind = KINDS[setting.kind] + (", secret" if setting.secret else "")
    # Seconds, counts and megabytes from 0 or 1 up need no word.
    return f"{kind}, {setting.least} or more" if setting.least > 1 else kind


def _default(setting: Setting) -> str:
    if setting.required:
        return ""
    if setting.default in ("", [], {}):
        return "empty"
    value = str(setting.default).lower() if isinstance(setting.default, bool) else setting.default
    quoted = f"'{value}'" if setting.kind == "str" and str(value).isdigit() else value
    return f"`{quoted}`"


def _text(setting: Setting) -> str:
    return setting.text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or check it; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: settings_docs.py [--check]", file=sys.stderr)
        return 2
    text = page()
    if not arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/pillar.md is not current; run make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
