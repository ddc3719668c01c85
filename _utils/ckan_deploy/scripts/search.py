"""
The search index, seen from inside a release: what decides how a dataset stands in it, and its rebuild. A part of the
scripts ``probe`` and ``backends``.
"""

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request

# The command `ckan search-index rebuild` of each version, told never to empty the index first, as older ones do unless
# they refresh, and to end without what is no dataset any more. What is read are the datasets meant, or null for all.
REBUILD = """
import json, sys
from ckan.cli import search_index
import ckan.lib.search as search
meant = json.load(sys.stdin)
options = {option.name for option in getattr(search_index.rebuild, "params", [])}
def rebuild(*given, real=search.rebuild, **more):
    from ckan import model
    if meant is None:
        real(*given, **more)
    else:
        there = {row[0] for row in model.Session.query(model.Package.id)}
        real(package_ids=[name for name in meant if name in there])
    if "keep_orphans" not in options and hasattr(search_index, "get_orphans"):
        search.commit()
        for orphan in search_index.get_orphans():
            search.clear(orphan)
search.rebuild = rebuild
if "refresh" in options:
    sys.argv.insert(sys.argv.index("rebuild") + 1, "--refresh")
"""
# Seconds that the clock of Solr may differ by, and more.
CLOCKS = 300
SOLR_TIMEOUT = 60
# Who only looks is answered before the whole probe is out of time.
COUNT_TIMEOUT = 10


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
    """
    Index every dataset anew, in place and without emptying the index before; or in a second core, if there is one,
    which changes names with the first when it is complete.
    """
    begun, options, second = time.time(), options_of(ini), told.get("second_core")
    if not second:
        run_rebuild(ini, None, told["log"], result)
    else:
        empty_second_core(options, second)
        if run_rebuild(ini, None, told["log"], result, CKAN_SOLR_URL=beside(options, second)):
            changed = swap_cores(options, second, begun)
            run_rebuild(ini, changed, told["log"], result)
    result.update(index_counts(ini))


def core_of(options: dict) -> str:
    """The address of the core that CKAN uses."""
    return options["solr_url"].rstrip("/")


def beside(options: dict, name: str) -> str:
    """The address of another core of the same Solr."""
    return core_of(options).rpartition("/")[0] + "/" + name


def empty_second_core(options: dict, second: str) -> None:
    """Refused where a core has what another site wrote: it would be lost, or swapped away."""
    cores = (core_of(options), beside(options, second))
    if cores[0] == cores[1]:
        raise Sentence(f"the second core {second} is the one that CKAN uses; name another one in search:second_core")
    site = options.get("ckan.site_id", "default")
    for core in cores:
        if solr(options, core, "select", q="*:*", fq=f'-site_id:"{site}"', rows=0)["response"]["numFound"]:
            raise Sentence(f"the core {core} holds more than the site {site}; leave search:second_core empty")
    solr(options, cores[1], "update", {"delete": {"query": "*:*"}}, commit="true")


def swap_cores(options: dict, second: str, begun: float) -> list:
    """
    Have two cores change names; returns the datasets that were changed since a time, which the new index does not know
    in that way: https://solr.apache.org/guide/solr/latest/configuration-guide/coreadmin-api.html (SWAP).
    """
    first, other = core_of(options), beside(options, second)
    solr(options, beside(options, "admin"), "cores", action="SWAP", core=first.rpartition("/")[2], other=second)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun - CLOCKS))
    old, new = (ids_in(options, core, "*:*") for core in (other, first))
    touched = ids_in(options, other, f"indexed_ts:[{since} TO *]")
    # What was deleted has gone from the old one.
    return sorted(touched | (new - old))


def ids_in(options: dict, core: str, query: str) -> set:
    rows = solr(options, core, "select", q=query, fl="id", rows=2**31 - 1)["response"]["docs"]
    return {row["id"] for row in rows}


def solr(options: dict, core: str, handler: str, told=None, /, timeout=SOLR_TIMEOUT, **asked) -> dict:
    """Ask Solr, as the user that CKAN is; what is told goes as JSON."""
    # The user may stand in the address, too, which urllib does not read.
    parts = urllib.parse.urlsplit(core)
    user, _, host = parts.netloc.rpartition("@")
    user = urllib.parse.unquote(user) or ":".join(options.get(f"solr_{name}", "") for name in ("user", "password"))
    core = parts._replace(netloc=host).geturl()
    address = f"{core}/{handler}?{urllib.parse.urlencode({**asked, 'wt': 'json'})}"
    request = urllib.request.Request(address, None if told is None else json.dumps(told).encode("utf-8"))
    request.add_header("Content-Type", "application/json")
    if user != ":":
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode("utf-8")).decode("ascii"))
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except (OSError, ValueError) as exc:
        raise Sentence(f"Solr does not answer as it should at {core}/{handler}: {one_line(exc)}") from exc


def run_rebuild(ini: str, meant, file: str, result: dict, **environment: str) -> bool:
    """Index datasets by CKAN's own command: those meant, or all for None."""
    with open(file, "a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-c", ALEMBIC + REBUILD + COMMAND, "-c", ini, "search-index", "rebuild"],
            input=json.dumps(meant), stdout=log, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
    with open(file, encoding="utf-8", errors="replace") as log:
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    if done.returncode != 0:
        result["errors"].append(f"ckan search-index rebuild failed: {message_of(lines)}")
    return done.returncode == 0


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
    fq = f'+site_id:"{site}" +entity_type:package -state:deleted'
    try:
        found = solr(options, core_of(options), "select", timeout=COUNT_TIMEOUT, q="*:*", rows=0, fq=fq)
        counts["indexed"] = found["response"]["numFound"]
    except (Sentence, KeyError) as exc:
        counts["problem"] = one_line(exc)
    return counts
