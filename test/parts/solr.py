"""Solr with CKAN's schema, from the jars that Solr publishes as Maven artifacts."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from parts import base
from parts.ports import free_port
from parts.process import PartError, Service, run

VERSION = "9.10.1"
SOURCE = Path(__file__).parent / "solr_server"
CACHE = base.CACHE / f"solr-{VERSION}"


def install(cache: Path = CACHE, say: Callable[[str], None] | None = None) -> Path:
    """Download Solr's jars, once.

    cache
        Directory that keeps them.
    say
        Called with progress lines.

    Returns the directory of the jars. Raises PartError when the download fails.
    """
    jars, marker = cache / "lib", cache / "complete"
    with base.alone(cache):
        if not marker.exists():
            # An interrupted download leaves no marker: start it again.
            shutil.rmtree(jars, ignore_errors=True)
            cache.mkdir(parents=True, exist_ok=True)
            command = ["mvn", "-q", "-B", "-f", SOURCE / "pom.xml", "dependency:copy-dependencies"]
            command += [f"-DoutputDirectory={jars}"]
            run(command, f"Downloading Solr {VERSION}", cache / "download.log", say=say)
            if not list(jars.glob("solr-core-*.jar")):
                raise PartError(f"the download of Solr brought no solr-core; see {cache / 'download.log'}")
            marker.write_text(f"{len(list(jars.glob('*.jar')))} jars\n")
    return jars


def schema_of(virtualenv: str | Path) -> Path:
    """Return the Solr schema that the CKAN of a virtualenv brings. Raises PartError if there is none."""
    found = list(Path(virtualenv).glob("lib/python*/site-packages/ckan/config/solr/schema.xml"))
    if not found:
        raise PartError(f"no CKAN with a Solr schema in {virtualenv}; give the virtualenv of a real CKAN")
    return found[0]


class Solr(Service):
    """Solr with two cores, `ckan` and an empty `ckan_second`, on a free port of 127.0.0.1.

    sandbox
        Directory of all the parts.
    schema
        schema.xml of a CKAN release, see schema_of.
    jars
        Directory of Solr's jars, see install; None installs them where needed.
    name
        Name of the service in the sandbox.
    fields
        Further fields of the schema, as it has them.
    """

    def __init__(
        self,
        sandbox: str | Path,
        schema: str | Path,
        jars: str | Path | None = None,
        name: str = "solr",
        fields: str = "",
    ) -> None:
        super().__init__(sandbox, name)
        self.schema, self.fields = Path(schema), fields
        self.jars = jars
        self.port = 0

    @property
    def url(self) -> str:
        """Address of the core, as CKAN's option solr_url wants it."""
        return f"http://127.0.0.1:{self.port}/solr/ckan"

    def start(self, timeout: float = 120, say: Callable[[str], None] | None = None) -> Solr:
        """Make the core on the first start, and start Solr. Raises PartError."""
        jars = Path(self.jars) if self.jars else install(say=say)
        home = self._make_home()
        self.port = self.port or free_port()
        # It lives for minutes: the best code is not worth its making, nor the collector of large heaps.
        command = [
            "java",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xmx512m",
            f"-Dsolr.log.dir={self.directory}",
            "-cp",
            f"{jars}/*",
        ]
        command += [SOURCE / "Main.java", home, str(self.port)]
        self.launch(command, lambda: self.count() is not None, timeout=timeout)
        return self

    def _make_home(self) -> Path:
        home = self.directory / "home"
        for core in ("ckan", "ckan_second"):
            configuration = home / core / "conf"
            configuration.mkdir(parents=True, exist_ok=True)
            # Cores that have changed names keep the names that they have.
            if not (home / core / "core.properties").exists():
                (home / core / "core.properties").write_text(f"name={core}\n")
            for name in ("synonyms.txt", "protwords.txt", "stopwords.txt"):
                (configuration / name).touch()
            shutil.copy(SOURCE / "solrconfig.xml", configuration)
            schema = self.schema.read_text(encoding="utf-8").replace("</fields>", f"{self.fields}</fields>", 1)
            (configuration / "schema.xml").write_text(schema, encoding="utf-8")
        (home / "solr.xml").write_text("<solr/>\n")
        return home

    def count(self) -> int | None:
        """Return how many documents the core holds, or None when it does not answer."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            with urllib.request.urlopen(f"{self.url}/select?q=*:*&rows=0&wt=json", timeout=5) as answer:
                return json.load(answer)["response"]["numFound"]
        return None

    def update(self, told: dict) -> None:
        """Write to the core, past CKAN."""
        request = urllib.request.Request(f"{self.url}/update?commit=true", json.dumps(told).encode())
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=30).close()
