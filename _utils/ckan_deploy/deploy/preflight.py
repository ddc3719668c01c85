"""What is asked of a host before a deploy begins: what keeps a release from being made or served here."""

from __future__ import annotations

import os
import pwd

from ckan_deploy.build import sharing, shipping
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.releases import hooks
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, cron, health, maintenance_page, shared_files
from ckan_deploy.system import disk, facts


def obstacles(site: Site, release: str, any_age: bool = False, builds: bool = True) -> list[str]:
    """
    Say what is in the way: another system, no base, no build user, no sandbox, a newer release, ``current`` itself,
    disk, shared files that were changed, directories that others may write to, supervisor, web server, maintenance
    page, cron, hooks.

    site
        The site.
    release
        The id of the release to make.
    any_age
        It may be older than others here: a host catches up with what it has missed.
    builds
        It is built here; False where another host ships it.

    Returns a list of sentences, empty when nothing is in the way.
    """
    found = list(filter(None, [facts.unsupported()]))
    found += [*_build_problems(site, builds), *_age_problems(site, "" if any_age else release), *_disk_problems(site)]
    found += filter(None, [sharing.problem(site)])
    if site.settings.build.only:
        return found  # it serves nothing
    found += shared_files.exposed(site)
    found += filter(
        None, (site.releases.link_problem(), app_server.supervisor_problem(site), health.front_problem(site))
    )
    return [*found, *maintenance_page.problems(site), *cron.problems(site), *hooks.problems(site)]


def remarks(site: Site) -> list[str]:
    """
    Say what is to be known of how a release is made here.

    site
        The site.
    """
    if site.settings.build.sandbox == "user" and site.settings.extensions:
        return ["extensions are built without a sandbox (ckan:build:sandbox is user)"]
    return []


def _build_problems(site: Site, builds: bool) -> list[str]:
    problems = list(filter(None, [shipping.problem(site, builds)]))
    if builds and not site.settings.base.version and not os.path.exists(os.path.join(site.paths.base, "bin", "python")):
        again = "run state.apply ckan first"
        if site.builder:
            again = f"{site.builder} builds for this host (ckan:build:ship), so deploy by orch.deploy"
        problems.append(f"there is no virtualenv in {site.paths.base}; {again}")
    if os.geteuid() == 0:
        user = site.settings.build_user
        try:
            pwd.getpwnam(user)
        except KeyError:
            problems.append(f"there is no user {user} (ckan:build_user); run state.apply ckan first")
    # Only where that user is: the sandbox runs as it.
    problem = "" if problems else Sandbox.of(site.settings).problem()
    return [*problems, *filter(None, [problem])]


def _age_problems(site: Site, release: str) -> list[str]:
    newest = [manifest.id for manifest in site.releases.manifests()][-1:] if release else []
    if newest and newest[0] >= release:
        return [f"release {newest[0]} here is not older than {release}; compare the clocks of master and host"]
    return []


def _disk_problems(site: Site) -> list[str]:
    """For releases, and for what is shared where that is another disk."""
    wanted = site.settings.disk_free_mb
    found: dict[int, str] = {}
    for folder in (site.paths.releases, site.paths.shared):
        found.setdefault(os.stat(disk.existing(folder)).st_dev, folder)
    return [
        f"{free} MB are free under {folder}, ckan:disk_free_mb asks for {wanted}; make room (ckan_release.prune)"
        for folder in found.values() if (free := disk.free_mb(folder)) < wanted
    ]  # fmt: skip
