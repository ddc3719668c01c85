"""More extensions of others beside those of ``parts.nine``, on a portal that has all of them from its first release."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parts.nine import PLUGINS, VERSIONS, NinePortal, commit_to
from stub import repos

MORE = {
    "pdfview": "0.0.6",
    "officedocs": "2.0.0",
    "unfold": "3.4.0",
    "pygments": "1.4.2",
    "dataset-series": "0.1.1",
    "contact": "2.4.5",
    "selfinfo": "2.0.0",
    "let-me-in": "1.1.3",
    "envvars": "0.0.6",
}
MORE_PLUGINS = [
    *("pdf_view", "officedocs_view", "unfold", "pygments_view", "dataset_series", "contact"),
    *("selfinfo", "selftools", "let_me_in", "envvars"),
]
# By the name of the extension: what its plugin is, and the cause that the check has to tell.
BROKEN = {
    "oldcity": (
        "from ckan.lib.base import BaseController\n",
        "ImportError: cannot import name 'BaseController' from 'ckan.lib.base'",
    ),
    "shapes": ("import shapefile\n", "ModuleNotFoundError: No module named 'shapefile'"),
    "counter": ("", "RuntimeError: no such table: counters"),
}


class FifteenPortal(NinePortal):
    """A NinePortal with further extensions; ``full`` is the pillar of all of them, with the services of harvest."""

    versions = VERSIONS | MORE
    plugins = [*PLUGINS, *MORE_PLUGINS]

    @property
    def full(self) -> dict[str, Any]:
        """The pillar as an operator writes it for all of them."""
        return self.nine

    def pillar_of(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the pillar of NinePortal, and what the further ones are to be told."""
        pillar = super().pillar_of(names)
        schemas = "ckanext.mycity:dataset.yaml ckanext.dataset_series:schemas/dataset_series.yaml"
        presets = pillar["config"]["scheming.presets"]
        return {
            **pillar,
            # As the comments of pillar.example have them.
            "services": {
                "gather": {"command": "harvester gather-consumer", "once": True, "stop_when_idle": True},
                "fetch": {"command": "harvester fetch-consumer", "stop_when_idle": True, "order": 1},
            },
            "cron": {"harvest": {"schedule": "*/15 * * * *", "command": "harvester run", "once": True}},
            # What their extensions do not declare.
            "config_known": ["scheming.*", "ckanext.spatial.search_backend"],
            "config": {
                **pillar["config"],
                "scheming.dataset_schemas": schemas,
                "scheming.presets": f"{presets} ckanext.dataset_series:schemas/presets.yaml",
            },
        }

    def with_broken(self) -> dict[str, Any]:
        """Make the extensions that are broken, and return the pillar with them among the others."""
        extensions = dict(self.full["extensions"])
        for name, (imports, _) in BROKEN.items():
            repo = repos.make_repo(self.sandbox / "git", name, "Broken")
            if not imports:
                repos.commit_broken(repo, "no such table: counters")
            plugin: Path = repo / f"ckanext/{name}/plugin.py"
            plugin.write_text(imports + plugin.read_text(encoding="utf-8"), encoding="utf-8")
            commit_to(repo, "Broken")
            extensions[f"ckanext-{name}"] = {"url": str(repo), "ref": "main"}
        first, *others = self.plugins
        return {**self.full, "extensions": extensions, "plugins": [first, "oldcity", "counter", *others, "shapes"]}
