"""
Runs inside a release, by the release's own interpreter, as the user that runs CKAN. ``schema.py`` and ``search.py``
come before it:

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
import filecmp
import gc
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
import urllib.parse

# For the look at a plugin that nobody enables: what stands above it may do anything.
LOOK_SECONDS = 30
# What is told of a traceback at most, in characters.
TRACEBACK_SIZE = 8000
# What a note of webassets has at most, in bytes.
NOTE_SIZE = 512

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


def not_importable(ini: str) -> dict:
    """The plugins that cannot be imported, each with its own reason."""
    from ckan.cli import CKANConfigLoader
    from ckan.common import config

    # What is imported may read options.
    config.update(CKANConfigLoader(ini).get_config())
    points = {}
    for distribution in importlib.metadata.distributions():
        for point in distribution.entry_points:
            if point.group in ("ckan.plugins", "ckan.system_plugins", "ckan.test_plugins"):
                points.setdefault(point.name, point)
    found = {}
    for name in str(config.get("ckan.plugins", "")).split():
        if name in points:  # else CKAN says that there is none
            try:
                points[name].load()
            except BaseException as exc:
                found[name] = one_line(exc) + place_in_extension(exc)
    return found


def broken_plugins(enabled: list) -> dict:
    """
    The plugins that nobody enables and whose module cannot be found, each with the package that names it and why. No
    module is imported but the packages above it; of these most of CKAN is there already.
    """
    points = [
        (distribution.metadata["Name"], point)
        for distribution in importlib.metadata.distributions()
        for point in distribution.entry_points
        # Some versions of CKAN name plugins of their tests that they do not bring.
        if point.group == "ckan.plugins" and point.name not in enabled and distribution.metadata["Name"] != "ckan"
    ]
    found, done = {}, 0
    while done < len(points):
        # In a process of its own, which tells how far it came: what is imported may end it.
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            for _, point in points[done:]:
                signal.alarm(LOOK_SECONDS)
                told = not_to_be_found(point)
                os.write(writes, (json.dumps(told) + "\n").encode("utf-8"))
            os._exit(0)
        os.close(writes)
        with open(reads, encoding="utf-8") as pipe:
            answers = [json.loads(line) for line in pipe.read().split("\n")[:-1]]
        status = os.waitpid(child, 0)[1]
        if done + len(answers) < len(points):
            late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            why = f"is not imported within {LOOK_SECONDS} s" if late else "ends the process"
            answers.append(f"{points[done + len(answers)][1].module}: {why}")
        for (package, point), problem in zip(points[done:], answers, strict=False):
            if problem:
                found[point.name] = f"{package}: {problem}"
        done += len(answers)
    return found


def not_to_be_found(point) -> str:
    """Why the module of a plugin cannot be found, '' where it can."""
    try:
        spec = importlib.util.find_spec(point.module)
    except BaseException as exc:
        return f"{point.module}: {one_line(exc)}"
    if not spec:
        return f"there is no module {point.module}"
    inside = not spec.origin or spec.origin.startswith(sys.prefix + "/")
    return "" if inside else f"{point.module} comes from {spec.origin}"


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


def guilty_plugins(exc: BaseException) -> list:
    """
    The plugin in whose code CKAN failed, or that it was making, read from the frames of the traceback; two where CKAN
    says that one has the place of another. A variable of a loop that is over blames nobody.
    """
    from ckan.plugins import SingletonPlugin

    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    for frame, inner in reversed(list(zip(frames, [*frames[1:], None], strict=True))):
        module, known = frame.f_globals.get("__name__", ""), frame.f_locals
        if module in ("ckan.plugins.core", "ckan.plugins") and isinstance(known.get("plugin_name"), str):
            return [known["plugin_name"]]
        if isinstance(known.get("self"), SingletonPlugin):
            return [known["self"].name]
        plugin = known.get("plugin")
        if not isinstance(plugin, SingletonPlugin):
            continue
        if module == "ckan.lib.plugins" and inner is None:
            return [*the_other(frame, plugin), plugin.name]
        calls = inner is not None and (
            inner.f_globals.get("__name__") == type(plugin).__module__
            or inner.f_code.co_name == "register_extension_blueprint"
        )
        if calls:
            return [plugin.name]
    return []


def tripped_over(exc: BaseException, given) -> str:
    """The option that is not valid by its declaration and that the code which failed was reading, '' for none."""
    try:
        from ckan.common import config_declaration

        # CKAN's own, and those of the plugins that are loaded.
        config_declaration.setup()
        _, errors = config_declaration.validate(
            {**{str(key): config_declaration[key].default for key in config_declaration.iter_options()}, **given}
        )
    except Exception:
        return ""  # an older CKAN, or a declaration that is itself at fault: what failed is told as it is
    lines = [frame.line or "" for frame in traceback.extract_tb(exc.__traceback__)]
    said = [*lines, str(exc)]
    # Its value may be any text, such as that of another option: only together with the words of a conversion.
    for name in sorted(errors or {}):
        value = repr(str(given.get(name, "")))
        if any(name in text for text in said) or (isinstance(exc, ValueError) and value in str(exc)):
            return name
    return ""


def the_other(frame, plugin) -> list:
    """The plugin that has the place which another one asks for: a type of datasets or groups, or that of a fallback."""
    known, module = frame.f_locals, frame.f_globals
    kinds = [known.get("package_type"), known.get("group_type")]
    found = [table.get(kind) for table in (module.get("_package_plugins"), module.get("_group_plugins"))
             if isinstance(table, dict) for kind in kinds]  # fmt: skip
    found += [module.get(f"_default_{kind}_plugin") for kind in ("package", "organization", "group")]
    names = [getattr(other, "name", "") for other in found if other is not plugin]
    return [name for name in names if isinstance(name, str) and name][:1]


def traceback_of(exc: BaseException) -> str:
    """The traceback in lines; of a long one its ends, since the last frames are those of the plugin."""
    return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))[-TRACEBACK_SIZE:]


def place_in_extension(exc: BaseException) -> str:
    """Where in an extension it failed: of a library that is missing one wants to know who asks for it."""
    for frame, line in reversed(list(traceback.walk_tb(exc.__traceback__))):
        _, inside, rest = frame.f_code.co_filename.rpartition("/ckanext/")
        if inside:
            return f" (ckanext/{rest}, line {line})"
    return ""


if __name__ == "__main__":
    outcome = main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    sys.stdout.flush()
    # A line of its own, whatever was printed before.
    print()
    print("CKAN-PROBE " + json.dumps(outcome), flush=True)
    # Threads that a plugin started must not keep us.
    os._exit(0)
