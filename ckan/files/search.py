"""
The search index, seen from inside a release: what decides how a dataset stands in it, and its rebuild. ``ckan_app``
puts this between ``schema.py`` and ``probe.py``.
"""

import hashlib
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request

# The command `ckan search-index rebuild` of each version, told never to empty the index first: CKAN up to 2.11 does
# that unless it refreshes.
REBUILD = """
import sys
from ckan.cli.search_index import rebuild
if any(option.name == "refresh" for option in getattr(rebuild, "params", [])):
    sys.argv.insert(sys.argv.index("rebuild") + 1, "--refresh")
"""


def index_made_of() -> dict:
    """
    What decides how a dataset stands in the index: ``{"ckan": version, "schema": hash, "plugins": {name: hash}}``. Of a
    plugin that changes what is indexed it is the file with the method that does.
    """
    try:
        import ckan.plugins
        from ckan.plugins import IPackageController, PluginImplementations
    except ImportError:
        return {}
    import inspect

    import ckan

    def changes(plugin) -> list:
        names = ("before_dataset_index", "before_index")
        methods = [getattr(type(plugin), name, None) for name in names]
        own = [method for method in methods if method and not method.__module__.startswith("ckan.plugins")]
        return sorted({inspect.getsourcefile(method) for method in own})

    found = {plugin.name: changes(plugin) for plugin in PluginImplementations(IPackageController)}
    schema = os.path.join(os.path.dirname(ckan.__file__), "config", "solr", "schema.xml")
    return {
        "ckan": ".".join(ckan.__version__.split(".")[:2]),
        "schema": hash_of([schema]),
        "plugins": {name: hash_of(files) for name, files in sorted(found.items()) if files},
    }


def hash_of(files: list) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as handle:
            digest.update(handle.read())
    return digest.hexdigest()[:16]


def check_solr_schema(result: dict) -> None:
    """CKAN says itself which schemas of Solr it gets along with."""
    try:
        from ckan.lib.search import SearchError, check_solr_schema_version
    except ImportError:
        return
    try:
        check_solr_schema_version()
    except SearchError as exc:
        result["errors"].append(solr_schema_sentence(exc))


def solr_schema_sentence(exc: BaseException) -> str:
    import ckan

    schema = os.path.join(os.path.dirname(ckan.__file__), "config", "solr", "schema.xml")
    return f"{one_line(exc)}; put {schema} into the core of Solr, reload it, and deploy again"


def rebuild_index(ini: str, told: dict, result: dict) -> None:
    """Index every dataset anew, without emptying the index before, then remove what is no dataset any more."""
    prelude = ALEMBIC + REBUILD + COMMAND
    with open(told["log"], "w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-c", prelude, "-c", ini, "search-index", "rebuild"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    with open(told["log"], encoding="utf-8", errors="replace") as log:
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    if done.returncode != 0:
        result["errors"].append(f"ckan search-index rebuild failed: {message_of(lines)}")
    result.update(index_counts(ini))


def index_counts(ini: str) -> dict:
    """How many datasets there are, and how many of them Solr has: ``{"datasets", "indexed"}``."""
    options, counts = options_of(ini), {}
    if importlib.util.find_spec("sqlalchemy"):
        from sqlalchemy import text

        with contextlib.closing(connect(options["sqlalchemy.url"])) as connection:
            there = connection.execute(text("select to_regclass('package') is not null")).scalar()
            sql = "select count(*) from package where state != 'deleted'"
            counts["datasets"] = connection.execute(text(sql)).scalar() if there else 0
    site = options.get("ckan.site_id", "default")
    asked = {"q": "*:*", "rows": 0, "wt": "json", "fq": f'+site_id:"{site}" +entity_type:package -state:deleted'}
    try:
        address = options["solr_url"].rstrip("/") + "/select?" + urllib.parse.urlencode(asked)
        with urllib.request.urlopen(address, timeout=10) as answer:
            counts["indexed"] = json.load(answer)["response"]["numFound"]
    except (OSError, ValueError, KeyError) as exc:
        counts["problem"] = f"Solr does not say what it has: {one_line(exc)}"
    return counts
