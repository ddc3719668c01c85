"""The web application."""

from __future__ import annotations

import contextlib
import html
import json
import time
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

    def test_request_context(self, *args, **kwargs):
        return contextlib.nullcontext()


def _front_page() -> str:
    title = html.escape(config.get("ckan.site_title", "CKAN"))
    lines = ["<!DOCTYPE html>", f"<html><head><title>{title}</title></head>", f"<body><h1>{title}</h1>"]
    for plugin in plugins.loaded():
        if hasattr(plugin, "front_text"):
            lines.append(f'<p><span class="{plugin.name}-marker">{html.escape(plugin.front_text())}</span></p>')
    return "\n".join([*lines, "</body></html>", ""])


def _answer(environ, start_response):
    path = environ.get("PATH_INFO") or "/"
    query = parse_qs(environ.get("QUERY_STRING", ""))
    status, kind, body = "200 OK", "text/html; charset=utf-8", ""
    if path == "/":
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
