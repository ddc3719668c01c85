"""Eight extensions of others, from git repositories made of their sdists, and one of our own, on a real portal."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parts import base
from parts.process import run
from parts.real import PASSWORD, RealPortal
from stub import repos

# Each with the plugins that are enabled of it.
VERSIONS = {
    "harvest": "1.6.3",
    "spatial": "2.3.2",
    "dcat": "2.4.4",
    "scheming": "3.1.0",
    "hierarchy": "1.2.0",
    "xloader": "2.6.0",
    "fluent": "1.0.0",
    "geoview": "0.3.2",
}
PLUGINS = [
    *("datastore", "xloader", "activity", "mycity", "harvest", "ckan_harvester", "spatial_metadata", "spatial_query"),
    *("csw_harvester", "waf_harvester", "dcat", "dcat_rdf_harvester", "structured_data", "scheming_datasets", "fluent"),
    *("hierarchy_display", "hierarchy_form", "geo_view", "geojson_view"),
]
# What an operator has to write beside the extensions: CKAN 2.12.0 pins older ones than xloader asks for.
XLOADER_NEEDS = ["certifi>=2026.7.22", "idna>=3.20", "urllib3>=2.8.0"]
# Two of them are older than CKAN 2.12: what an operator changes, by file.
PATCHES = {
    "hierarchy": {
        "ckanext/hierarchy/helpers.py": {
            "import request, is_flask_request": "import request",
            "is_flask_request()": "request",
            "request.params": "request.args",
        },
        "ckanext/hierarchy/templates/organization/read.html": {"search_facetssearch_facets": "search_facets"},
        "ckanext/hierarchy/templates/snippets/search_form.html": {
            "c.group_dict.type": "(group_dict or {}).type",
            'label="Include Sub-"+group_type': 'label="Include all below"',
        },
    },
    "fluent": {
        "ckanext/fluent/helpers.py": {"from ckan.lib.helpers": "from ckan.lib.i18n"},
        "ckanext/fluent/validators.py": {
            "from pylons": "from ckan.plugins.toolkit",
            "basestring": "str",
            ".iteritems()": ".items()",
            "text.decode('utf-8')": "text",
        },
    },
}

SCHEMA = """\
scheming_version: 2
dataset_type: dataset
about: Datasets of My City
about_url: http://example.org/about
dataset_fields:
- {field_name: title, label: Title, preset: title}
- {field_name: name, label: URL, preset: dataset_slug}
- {field_name: notes, label: Description, form_snippet: markdown.html}
- {field_name: owner_org, label: Organization, preset: dataset_organization}
- field_name: district
  label: District
  required: true
  preset: select
  choices: [{value: north, label: The North}, {value: south, label: The South}]
- {field_name: motto, label: Motto, preset: fluent_text, form_languages: [en, de]}
- {field_name: spatial, label: Extent, validators: ignore_missing}
resource_fields:
- {field_name: url, label: URL, preset: resource_url_upload}
- {field_name: name, label: Name}
- {field_name: format, label: Format, preset: resource_format_autocomplete}
"""
# As the documentation of ckanext-spatial has them for its backend solr-bbox.
SOLR_FIELDS = "".join(
    f'<field name="{name}" type="float" indexed="true" stored="true"/>\n'
    for name in ("bbox_area", "maxx", "maxy", "minx", "miny")
)


def sdists(versions: Mapping[str, str], say: Callable[[str], None] | None = None) -> list[Path]:
    """Return the sdists of extensions, downloaded from the package index once."""
    place = base.CACHE / "sdists"
    with base.alone(place):
        found = {name: _sdist(place, name, version) for name, version in versions.items()}
        lost = [name for name in versions if not found[name]]
        if lost:
            command: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", place]
            for name in lost:
                command += ["--no-binary", f"ckanext-{name}", f"ckanext-{name}=={versions[name]}"]
            run(command, "Downloading extensions", place.with_name("sdists.log"), say=say)
            found = {name: _sdist(place, name, version) for name, version in versions.items()}
    return [paths[0] for paths in found.values()]


def _sdist(place: Path, name: str, version: str) -> list[Path]:
    return list(place.glob(f"ckanext?{name.replace('-', '?')}-{version}.tar.gz"))


def make_repos(
    directory: Path, say: Callable[[str], None] | None = None, versions: Mapping[str, str] = VERSIONS
) -> dict[str, Path]:
    """Make a git repository of each sdist, with a tag of its version; returns where each is."""
    made = {}
    for name, sdist in zip(versions, sdists(versions, say), strict=True):
        repo = directory / f"ckanext-{name}"
        repo.mkdir()
        unpack = ["tar", "-xzf", sdist, "-C", repo, "--strip-components=1", "--no-same-owner"]
        subprocess.run(unpack, check=True)
        # What is made by the build of an sdist, and in no repository.
        (repo / "PKG-INFO").unlink()
        shutil.rmtree(repo / f"ckanext_{name.replace('-', '_')}.egg-info")
        repos.git(repo, "init", "--quiet", "--initial-branch", "main")
        repos.git(repo, "add", "--all")
        repos.git(repo, "commit", "--quiet", "--message", f"Version {versions[name]}")
        repos.tag(repo, f"v{versions[name]}")
        made[name] = repo
    return made


def commit_to(repo: Path, text: str) -> str:
    """Commit another description of an extension; returns the commit's full hash."""
    with (repo / "README.md").open("a", encoding="utf-8") as handle:
        handle.write(f"\n{text}\n")
    repos.git(repo, "add", "--all")
    repos.git(repo, "commit", "--quiet", "--message", text)
    return repos.git(repo, "rev-parse", "HEAD")


class NinePortal(RealPortal):
    """A RealPortal on one web host, with the extensions beside `ckanext-mycity`, the datastore and fields for extents.

    `nine` is the pillar with all of them; what there is at first is without, as RealPortal has it.
    """

    solr_fields = SOLR_FIELDS
    versions: Mapping[str, str] = VERSIONS
    plugins: Sequence[str] = PLUGINS

    def __init__(self, sandbox: Path, say: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(sandbox, ["web1"], say=say)
        self.repos = make_repos(self.sandbox / "git", say, self.versions)
        (self.mycity / "ckanext/mycity/dataset.yaml").write_text(SCHEMA, encoding="utf-8")
        commit_to(self.mycity, "A schema of our own")
        self.nine: dict[str, Any] = {}

    def start(self, say: Callable[[str], None] | None = None) -> NinePortal:
        """Start all, with the database of the datastore, and the patch in the file server."""
        super().start(say)
        self.postgres.sql("postgres", "create role datastore_default login password 'read-only-word'")
        self.postgres.create_database("datastore_default", "ckan_default", PASSWORD)
        self.postgres.sql("postgres", "create role boss superuser login password 'of-the-boss'")
        for name, changed in PATCHES.items():
            text = "".join(_diff(self.repos[name], file, changes) for file, changes in changed.items())
            (self.fleet.file_roots / f"{name}.patch").write_text(text, encoding="utf-8")
        self.nine = self.pillar_of(self.versions)
        return self

    def pillar_of(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the pillar as an operator writes it, at the tags of some of them and with mycity."""
        extensions: dict[str, Any] = {
            f"ckanext-{name}": {"url": str(self.repos[name]), "ref": f"v{self.versions[name]}"} for name in names
        }
        extensions["ckanext-xloader"]["override"] = XLOADER_NEEDS
        for name in PATCHES:
            extensions[f"ckanext-{name}"]["patches"] = [f"salt://{name}.patch"]
        return {
            **self.settings,
            "extensions": {**self.settings["extensions"], **extensions},
            "database": {**self.settings["database"], "admin_user": "boss", "admin_password": "of-the-boss"},
            "datastore": {"name": "datastore_default", "read_password": "read-only-word"},
            "plugins": list(self.plugins),
            "config": {
                **self.settings["config"],
                "scheming.dataset_schemas": "ckanext.mycity:dataset.yaml",
                "scheming.presets": "ckanext.scheming:presets.json ckanext.fluent:presets.json",
                "ckanext.spatial.search_backend": "solr-bbox",
            },
        }


def _diff(repo: Path, file: str, changes: Mapping[str, str]) -> str:
    before = after = (repo / file).read_text(encoding="utf-8")
    for old, new in changes.items():
        after = after.replace(old, new)
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"a/{file}", f"b/{file}"))
