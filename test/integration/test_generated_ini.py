"""An ini that a real CKAN generates, beside what the pillar makes."""

from __future__ import annotations

import subprocess

import pytest

from ckan_deploy.build import declared, ini
from fakes import fake_site
from parts.base import build_base

pytestmark = pytest.mark.integration

# What a generated ini says on its own: an example that holds, or what CKAN computes.
SAYS = {"ckan.resource_formats"}


@pytest.mark.parametrize("version", ["2.12.0"])
def test_config_diff_of_a_generated_ini_leaves_out_ckan_s_defaults(tmp_path, version):
    base = build_base(version=version)
    file = tmp_path / "production.ini"
    subprocess.run([base / "bin/ckan", "generate", "config", file], check=True, capture_output=True)
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("ckan.site_title = CKAN\n", "ckan.site_title = Our portal\n"), encoding="utf-8")
    site = fake_site(tmp_path, web__server="none", web__app="none")
    shown, all_ = (ini.diff(site, str(tmp_path), (), known) for known in (declared.defaults(str(base)), {}))
    assert len(all_["removed"]) > 150 and all_["removed"].keys() - shown["removed"].keys()
    assert {"ckan.site_title"} <= shown["removed"].keys() <= {"ckan.site_title", *SAYS}
    assert shown["changed"] == all_["changed"] and "ckan.site_url" in shown["changed"]
    assert shown["defaults"] >= len(all_["removed"]) - len(shown["removed"]) > 150
