#!/usr/bin/env python3
"""
A stand-in for an empty Solr core, on 127.0.0.1:8983: it finds nothing, and takes what it is given. The formula asks
Solr before a deploy, and CKAN's pages do; the tests with a real Solr are in test/integration.
"""

from __future__ import annotations

import http.server
import json

FOUND = {
    "responseHeader": {"status": 0},
    "response": {"numFound": 0, "start": 0, "docs": []},
    "facet_counts": {"facet_queries": {}, "facet_fields": {}, "facet_dates": {}, "facet_ranges": {}},
}
ANSWERS = {
    "/solr/ckan/select": FOUND,
    "/solr/ckan/update": {"responseHeader": {"status": 0}},
    "/solr/ckan/admin/ping": {"responseHeader": {"status": 0}, "status": "OK"},
    "/solr/admin/info/system": {"responseHeader": {"status": 0}, "lucene": {"solr-spec-version": "0 (a stand-in)"}},
}
# CKAN looks at its name when it boots.
SCHEMA = b'<?xml version="1.0" encoding="UTF-8"?><schema name="ckan-2.12" version="1.6"/>'


class Core(http.server.BaseHTTPRequestHandler):
    """Answers as Solr does, in JSON, but for the schema."""

    def do_GET(self) -> None:
        """Answer any question; what is no address of Solr's is a 404."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].rstrip("/")
        schema, answer = path == "/solr/ckan/schema", ANSWERS.get(path)
        text = SCHEMA if schema else json.dumps(answer or {"error": {"code": 404}}).encode()
        self.send_response(200 if schema or answer else 404)
        self.send_header("Content-Type", "application/xml" if schema else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", 8983), Core).serve_forever()
