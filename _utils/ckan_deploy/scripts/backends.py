"""
Asks what CKAN needs behind it: database, datastore, Redis, Solr. Before a release is made, so without a boot, by the
interpreter of a virtualenv that has CKAN's libraries. What ``scripts.BACKENDS`` names comes before it, and a call of
``report`` with CKAN's options after it: they hold passwords, so they are no arguments.

The last line of standard output is ``CKAN-BACKENDS`` and one JSON object: ``{"problems": [[option, sentence]],
"remarks": [[option, sentence]], "versions": {name: version}}``.
"""

import concurrent.futures
import importlib.util
import json
import re

SECONDS = 5


def ask_all(options: dict) -> dict:
    """Ask them side by side. What is no CKAN, such as a stand-in of it, is not asked."""
    found = {"problems": [], "remarks": [], "versions": {}}
    if not importlib.util.find_spec("sqlalchemy"):
        return found
    questions = {
        "sqlalchemy.url": database,
        "administrator": administrator,
        "ckan.datastore.write_url": datastore,
        "ckan.datastore.read_url": datastore,
        "ckan.redis.url": redis_server,
        "solr_url": solr_core,
    }
    asked = {name: question for name, question in questions.items() if options.get(name)}
    with concurrent.futures.ThreadPoolExecutor(len(asked) or 1) as pool:
        jobs = {name: pool.submit(question, options, name, found) for name, question in asked.items()}
    for name, job in jobs.items():
        if job.exception() is not None:
            found["problems"].append([name, one_line(job.exception())])
    return found


def database(options: dict, name: str, found: dict) -> None:
    from sqlalchemy import text

    with connect(options[name]) as connection:
        say = lambda question: connection.execute(text(question)).scalar()  # noqa: E731
        found["versions"]["PostgreSQL"] = str(say("show server_version"))
        lacks = permission_lacking(say, "migrations do")
        if lacks and not say("select to_regclass('alembic_version') is not null"):
            raise Sentence(lacks)
        found["remarks"] += [[name, lacks]] if lacks else []


def permission_lacking(say, when: str) -> str:
    """Refuse a database that CKAN cannot write to; returns what its user lacks to make tables in it, as ``when``."""
    where = f"the database {say('select current_database()')}"
    if say("show server_encoding") != "UTF8":
        raise Sentence(f"{where} is of the encoding {say('show server_encoding')}; CKAN needs one of UTF8")
    if say("show transaction_read_only") == "on":
        raise Sentence(f"{where} takes no changes; see whether its server is a standby")
    if say("select has_schema_privilege(coalesce(current_schema(), 'public'), 'create')"):
        return ""
    user = say("select current_user")
    return (
        f"{user} may not make tables in {where}, as {when}; type in psql there, as a superuser: "
        f'grant usage, create on schema public to "{user}"'
    )


def administrator(options: dict, name: str, found: dict) -> None:
    """Who makes databases, and gives the datastore its permissions."""
    from sqlalchemy import text

    with connect(options[name]) as connection:
        may = "select rolcreatedb or rolsuper from pg_roles where rolname = current_user"
        if "needs" in options and not connection.execute(text(may)).scalar():
            user = connection.execute(text("select current_user")).scalar()
            found["remarks"].append([
                name,
                f"{user} may not make databases, as {options['needs']} does; type in psql, as a superuser: alter role "
                f'"{user}" createdb, or name another one',
            ])  # fmt: skip


def datastore(options: dict, name: str, found: dict) -> None:
    from sqlalchemy import text

    with connect(options[name]) as connection:
        say = lambda question: connection.execute(text(question)).scalar()  # noqa: E731
        if name == "ckan.datastore.write_url":
            lacks = permission_lacking(say, "each upload does")
            found["remarks"] += [[name, lacks]] if lacks else []


def redis_server(options: dict, name: str, found: dict) -> None:
    if not importlib.util.find_spec("redis"):
        return
    import redis

    try:
        client = redis.Redis.from_url(options[name], socket_connect_timeout=SECONDS, socket_timeout=SECONDS)
    except ValueError as exc:
        raise Sentence(f"that is no address of Redis: {exc}") from exc
    about = client.connection_pool.connection_kwargs
    where = f"Redis at {about.get('path') or '{}:{}'.format(about.get('host', 'localhost'), about.get('port', 6379))}"
    try:
        told = client.info()
    except redis.exceptions.AuthenticationError as exc:
        raise Sentence(f"{where} refuses the user or password, or asks for one ({exc}); correct it") from exc
    except redis.exceptions.RedisError as exc:
        raise Sentence(
            f"{where} does not answer as it should ({one_line(exc)}); start it, or correct the address"
        ) from exc
    found["versions"]["Redis"] = str(told.get("redis_version", ""))
    if told.get("role") == "slave":
        raise Sentence(f"{where} is a replica, which takes no jobs; name its master")


def solr_core(options: dict, name: str, found: dict) -> None:
    core = core_of(options)
    shown = re.sub(r"//[^/@]*@", "//", core)
    try:
        solr(options, core, "select", timeout=SECONDS, q="*:*", rows=0)
    except Sentence as exc:
        code = getattr(exc.__cause__, "code", 0)
        if code in (401, 403):
            raise Sentence(
                f"Solr at {shown} refuses the user or password, or asks for one (HTTP {code}); set solr_user and "
                "solr_password, in config or in secrets:config"
            ) from exc
        if code == 404:
            raise Sentence(f"there is no core at {shown} (HTTP 404); make it, or correct the address") from exc
        said = f"Solr at {shown} does not answer as it should ({one_line(exc.__cause__)})"
        raise Sentence(f"{said}; start it, or correct the address") from exc
    told = solr(options, core.rpartition("/")[0], "admin/info/system", timeout=SECONDS)
    found["versions"]["Solr"] = str(told.get("lucene", {}).get("solr-spec-version", ""))


def report(options: dict) -> None:
    print("CKAN-BACKENDS " + json.dumps(ask_all(options)))
