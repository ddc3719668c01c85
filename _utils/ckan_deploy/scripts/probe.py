"""
Runs inside a release, by the release's own interpreter, as the user that runs CKAN. What ``scripts.PROBE`` names comes
before it:

    python - check INI SETTINGS         a boot of CKAN that answers all questions of the stage `check`
    python - read INI                   where the database stands, seen from this release; no boot
    python - between INI TARGETS        the revisions of the database that whoever knows TARGETS does not know; no boot
    python - migrate INI SETTINGS       bring the database to the heads of this release
    python - downgrade INI SETTINGS     downgrade it to given heads
    python - index INI                  how many datasets there are, and how many the search index has; no boot
    python - rebuild INI SETTINGS       rebuild the search index
    python - output INI COMMAND         what a command of CKAN prints

TARGETS, SETTINGS and COMMAND are JSON. The last line of standard output is ``CKAN-PROBE`` and one JSON object; plugins
may print what they like before it.
Standard library only, besides what the release itself brings.
"""

import configparser
import difflib
import gc
import json
import os
import sys
import time
import urllib.parse

# Commands of services, cron jobs and extensions that CKAN must have, as words, by their settings.
COMMANDS = {}


def main(mode: str, ini: str, told: dict) -> dict:
    started = time.monotonic()
    result = {"ok": False, "errors": [], "warnings": [], "prefix": sys.prefix}
    try:
        if mode == "check":
            COMMANDS.update(told.get("commands", {}))
            check(ini, result, told.get("assets", ""))
        elif mode in ("read", "between"):
            result["schema"] = read(ini) if mode == "read" else between(ini, told)
        elif mode == "index":
            result.update(index_counts(ini))
        elif mode == "output":
            result["output"] = output_of(ini, told["command"])
        else:
            {"migrate": migrate, "downgrade": downgrade, "rebuild": rebuild_index}[mode](ini, told, result)
    except Exception as exc:  # the whole point is to report it in a line
        result["errors"].append(one_line(exc))
    result["ok"] = not result["errors"]
    result["seconds"] = round(time.monotonic() - started, 2)
    return result


def check(ini: str, result: dict, assets: str) -> None:
    """
    Boot CKAN; ``assets`` is the directory of the web assets of the live release, '' for none. Where plugins keep it
    from starting, look at all of them, and boot it again without those that fail, each time in a process that has
    booted nothing yet, until all that fail are known.
    """
    # A boot leaves hardly any garbage, and to look for it takes a fifth of the time.
    gc.disable()
    told = in_a_process_of_its_own(lambda: boot(ini, (), assets))
    errors, left_out = told.pop("errors"), told.pop("blamed")
    result["warnings"] += told.pop("warnings")
    result.update(told)
    if left_out:
        broken = in_a_process_of_its_own(lambda: not_importable(ini))
        errors += [f"plugin {name} does not start: {why}" for name, why in broken.items() if name not in left_out]
        left_out += [name for name in broken if name not in left_out]
    blamed = left_out
    while blamed:
        more = in_a_process_of_its_own(lambda without=tuple(left_out): boot(ini, without))
        blamed = [name for name in more["blamed"] if name not in left_out]
        errors += [f"{text} (seen without {', '.join(left_out)})" for text in more["errors"] if blamed]
        if blamed and more.get("traceback"):
            result["traceback"] = f"{result.get('traceback', '')}\n{more['traceback']}".strip()
        left_out = [*left_out, *blamed]
    result["errors"] += errors


def in_a_process_of_its_own(work) -> dict:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        told = work()
        sys.stdout.flush()
        with open(writes, "w", encoding="utf-8") as pipe:
            json.dump(told, pipe)
        # Threads that a plugin started must not keep us.
        os._exit(0)
    os.close(writes)
    with open(reads, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise Sentence("CKAN ended the process while it started, as a plugin may")
    return json.loads(text)


def boot(ini: str, left_out: tuple, assets: str = "") -> dict:
    """Boot CKAN without some plugins, and ask it everything; ``blamed`` is who keeps it from starting."""
    result = {"errors": [], "warnings": [], "blamed": []}
    try:
        app, result["plugins"] = started(ini, left_out, result)
        if app and not left_out:
            ask_everything(ini, app, result, assets)
            # Last: it may leave nothing of this process as it was.
            result["broken_plugins"] = broken_plugins(result["plugins"])
    except Exception as exc:
        result["errors"].append(one_line(exc))
    return result


def started(ini: str, left_out: tuple, result: dict):
    from ckan.cli import CKANConfigLoader
    from ckan.config.middleware import make_app

    import ckan

    exec(ALEMBIC, {})
    result["ckan_version"] = ckan.__version__
    config = CKANConfigLoader(ini).get_config()
    listed = [name for name in str(config.get("ckan.plugins", "")).split() if name not in left_out]
    config["ckan.plugins"] = " ".join(listed)
    try:
        return make_app(config), listed
    except BaseException as exc:  # a plugin may call sys.exit
        if "SOLR schema" in str(exc):
            # CKAN looks at that while it loads plugins, and none of them is to blame.
            result["errors"].append(solr_schema_sentence(exc))
            return None, listed
        guilty = guilty_plugins(exc)
        option = tripped_over(exc, config)
        if guilty and option:
            result["errors"].append(
                f"configuration option {option} is not valid, so the plugin {guilty[0]}, which reads it, does not start"
            )
            result["blamed"] = guilty[-1:]
            return None, listed
        where = f"plugin {guilty[0]} does not start" if guilty else "CKAN does not start"
        if len(guilty) > 1:
            where = f"plugins {' and '.join(guilty)} do not go together"
        result["errors"].append(f"{where}: {one_line(exc)}{place_in_extension(exc)}")
        result["traceback"] = traceback_of(exc)
        # Of two that do not go together the later one is left out.
        result["blamed"] = guilty[-1:]
        return None, listed


def ask_everything(ini: str, app, result: dict, assets: str) -> None:
    check_configuration(ini, result)
    check_commands(result)
    build_assets(result, assets)
    check_migrations(ini, result)
    check_solr_schema(result)
    result["index"] = index_made_of()
    check_search(app, result)
    result["datastore"] = datastore_lacks(ini)
    try:
        result["pages"] = plugin_pages(app)
        result["examples"] = example_pages(app)
    except Exception as exc:
        result["warnings"].append(f"the pages of plugins are not known, so they are not asked for: {one_line(exc)}")


def check_configuration(ini: str, result: dict) -> None:
    try:
        from ckan.common import config_declaration
    except ImportError:
        return
    # CKAN's own object: it holds the defaults, too, which the validators want.
    from ckan.common import config as loaded

    check_names(ini, config_declaration, result)
    _, errors = config_declaration.validate(loaded)
    for key, messages in sorted((errors or {}).items()):
        # The message may quote the value, and the value may be a secret: the key is enough.
        result["errors"].append(f"configuration option {key} is not valid ({len(messages)} problem)")


def check_commands(result: dict) -> None:
    """The commands that CKAN and its plugins do not have, each by its setting."""
    try:
        import click
        from ckan.cli import cli
    except ImportError:
        return
    add = getattr(cli, "_add_external_commands", None)
    if not (COMMANDS and add and isinstance(cli.ckan, click.Group)):
        return
    context = click.Context(cli.ckan)
    add(context)
    for setting, words in COMMANDS.items():
        result["errors"] += command_problem(setting, words, cli.ckan, context, click.Group)


def command_problem(setting: str, words: list, at, context, group: type) -> list:
    """What is wrong with a command: a sentence or none."""
    for index, word in enumerate(words):
        if not isinstance(at, group) or word.startswith("-"):
            return []
        found = at.get_command(context, word)
        if found is None:
            near = difflib.get_close_matches(word, at.list_commands(context), n=1)
            hint = f" (did you mean {near[0]}?)" if near else "; is its plugin in ckan:plugins?" if not index else ""
            return [f"{setting}: CKAN has no command '{' '.join(words[: index + 1])}'{hint}"]
        at = found
    if isinstance(at, group) and not at.invoke_without_command:
        known = ", ".join(at.list_commands(context))
        return [f"{setting}: '{' '.join(words)}' is no command by itself; add one of {known}"]
    return []


def check_names(ini: str, declaration, result: dict) -> None:
    """
    Options by an old name, and ``undeclared``: those that neither CKAN nor a plugin declares, as after an upgrade of
    CKAN, each with the declared one whose name is nearest, or ''. An extension may do without declaring.
    """
    from ckan.config.declaration.option import Flag

    parser = configparser.RawConfigParser()
    parser.optionxform = str
    with open(ini, encoding="utf-8") as handle:
        parser.read_file(handle)
    # What only older versions read, the formula gives to all.
    given = [
        name for name in parser["app:main"] if not (name in parser.defaults() or name == "use" or "beaker." in name)
    ]
    known = list(declaration.iter_options(exclude=Flag.none()))
    renamed = {declaration[key].legacy_key: str(key) for key in known if getattr(declaration[key], "legacy_key", None)}
    for name in sorted({*given} & {*renamed}):
        result["warnings"].append(f"the option {name} is called {renamed[name]} now; CKAN reads the old name still")
    strange = [name for name in given if name not in renamed and not any(key == name for key in known)]
    near = {name: difflib.get_close_matches(name, map(str, known), n=1, cutoff=0.85) for name in strange}
    result["undeclared"] = {name: (*some, "")[0] for name, some in near.items()}


def check_migrations(ini: str, result: dict) -> None:
    result["schema"] = schema = read(ini)
    result["warnings"] += lost_migrations(result["plugins"])
    for name, state in schema.items():
        if len(state["heads"]) > 1:
            result["errors"].append(
                f"the migrations of {name} have several heads ({', '.join(state['heads'])}); merge them (alembic "
                "merge) in the extension"
            )
    if schema:
        pending = {name: ", ".join(state["at"]) or "base" for name, state in schema.items() if state["pending"]}
    else:
        from ckan.cli.db import current_revision

        states = {plugin or "core": current_revision(plugin) for plugin in ["", *result["plugins"]]}
        pending = {name: state for name, state in states.items() if state and not state.endswith("(head)")}
    result["pending"] = pending


def check_search(app, result: dict) -> None:
    from ckan.plugins import toolkit

    if result["pending"].get("core") == "base":
        # A first release: its page /dataset/, which searches, is asked after the migration.
        return
    # Up to CKAN 2.11 there is another one around the application of Flask.
    flask_app = getattr(app, "_wsgi_app", app)
    try:
        with flask_app.test_request_context("/"):
            found = toolkit.get_action("package_search")({"ignore_auth": True}, {"rows": 0})
        result["datasets"] = found["count"]
    except Exception as exc:
        text = f"package_search does not answer: {one_line(exc)}"
        # The old schema may be the reason: the migration comes next, and the start of the site is asked again.
        result["warnings" if result["pending"] else "errors"].append(text)


def plugin_pages(app) -> list:
    """The pages that plugins add and that need no argument, by Flask's own list of routes."""
    flask_app = getattr(app, "_wsgi_app", app)
    if not hasattr(flask_app, "url_map"):
        return []
    modules = [module for name, module in list(sys.modules.items()) if f"{name}.".startswith("ckan.views.")]
    core = {id(value) for module in modules for value in vars(module).values()}
    found = set()
    for rule in flask_app.url_map.iter_rules():
        blueprint = flask_app.blueprints.get(str(rule.endpoint).rpartition(".")[0])
        # The type of a dataset is an argument that the blueprint gives.
        needed = set(rule.arguments) - set(rule.defaults or {})
        if blueprint is None or id(blueprint) in core or needed or "GET" not in (rule.methods or ()):
            continue
        if not (getattr(rule, "websocket", False) or getattr(rule, "build_only", False)):
            found.add(urllib.parse.quote(rule.rule, safe="/:@!$&()*+,;=~"))
    return sorted(found)


def example_pages(app) -> list:
    """The page of one dataset and of one organisation that everybody may see."""
    try:
        from ckan import model
    except ImportError:
        return []
    found = []
    package, group = model.Package, model.Group
    asked = (
        (package, package.private.is_(False), "dataset"),
        (group, group.is_organization.is_(True), "organization"),
    )
    # Single columns: the tables may be those of an older CKAN still.
    with getattr(app, "_wsgi_app", app).test_request_context("/"):
        for table, public, kind in asked:
            try:
                rows = model.Session.query(table.type, table.name).filter(table.state == "active", public)
                found += [f"/{row[0]}/{row[1]}" for row in rows.order_by(table.type != kind, table.name).limit(1)]
            except Exception:  # an empty database has no tables
                model.Session.rollback()
    return found


if __name__ == "__main__":
    outcome = main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    sys.stdout.flush()
    # A line of its own, whatever was printed before.
    print()
    print("CKAN-PROBE " + json.dumps(outcome), flush=True)
    # Threads that a plugin started must not keep us.
    os._exit(0)
