"""The web application."""

from __future__ import annotations

import contextlib
import html
import json
import time
from types import SimpleNamespace
from urllib.parse import parse_qs

from ckan import plugins
from ckan.common import config
from ckan.config.environment import load_environment
from ckan.plugins import toolkit


def make_app(conf: dict):
    """Boot the application.

    conf
        The options of the ini file.

    Returns a WSGI callable.
    """
    load_environment(conf)
    return _App()


class _App:
    """What make_app returns: like a Flask application, it can stand in for a request that nobody made."""

    def __call__(self, environ, start_response):
        return _answer(environ, start_response)

    @property
    def blueprints(self) -> dict:
        """One for each plugin, as if it were the plugin's own."""
        return {plugin.name: plugin for plugin in plugins.loaded()}

    @property
    def url_map(self):
        """The pages that plugins add: their method pages() returns {path: function that returns text}."""
        rules = [
            SimpleNamespace(rule=path, endpoint=f"{plugin.name}.page", arguments=set(), defaults=None, methods={"GET"})
            for plugin in plugins.loaded()
            for path in _pages(plugin)
        ]
        return SimpleNamespace(iter_rules=lambda: iter(rules))

    def test_request_context(self, *args, **kwargs):
        return contextlib.nullcontext()


def _front_page() -> str:
    title = html.escape(config.get("ckan.site_title", "CKAN"))
    lines = ["<!DOCTYPE html>", f"<html><head><title>{title}</title></head>", f"<body><h1>{title}</h1>"]
    for plugin in plugins.loaded():
        if hasattr(plugin, "front_text"):
            lines.append(f'<p><span class="{plugin.name}-marker">{html.escape(plugin.front_text())}</span></p>')
    return "\n".join([*lines, "</body></html>", ""])


def _pages(plugin) -> dict:
    return plugin.pages() if hasattr(plugin, "pages") else {}


def _added_page(path: str) -> tuple[str, str] | None:
    """Status and text of a page that a plugin adds; None where no plugin does."""
    for plugin in plugins.loaded():
        if path in _pages(plugin):
            try:
                return "200 OK", _pages(plugin)[path]()
            except Exception:
                return "500 INTERNAL SERVER ERROR", "<h1>500</h1>\n"
    return None


def _answer(environ, start_response):
    path = environ.get("PATH_INFO") or "/"
    query = parse_qs(environ.get("QUERY_STRING", ""))
    status, kind, body = "200 OK", "text/html; charset=utf-8", ""
    if added := _added_page(path):
        status, body = added
    elif path == "/":
        body = _front_page()
    elif path == "/slow":
        time.sleep(float(query.get("seconds", ["1"])[0]))
        body = "slow\n"
    elif path in ("/api/3/action/status_show", "/api/3/action/package_search"):
        action = path.rpartition("/")[2]
        kind = "application/json;charset=utf-8"
        body = json.dumps({"success": True, "result": toolkit.get_action(action)({}, {})})
    else:
        status, body = "404 Not Found", "<h1>404 Not Found</h1>\n"
    data = body.encode()
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(data)))])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [data]
