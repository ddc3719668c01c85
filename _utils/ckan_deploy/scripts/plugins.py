"""
Plugins, seen from inside a release: which one keeps CKAN from starting, and which cannot be imported. A part of the
script ``probe``.
"""

import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import traceback

# For the look at a plugin that nobody enables: what stands above it may do anything.
LOOK_SECONDS = 30
# What is told of a traceback at most, in characters.
TRACEBACK_SIZE = 8000


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
