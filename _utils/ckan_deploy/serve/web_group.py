"""The group of the web server: who else than CKAN's user may ask the app server on its socket."""

from __future__ import annotations

import grp
import re

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.system import files

# Debian's nginx runs as this one where its configuration does not say who.
DEFAULT = "www-data"
_USER = re.compile(r"^\s*user\s+([^\s;]+)(?:\s+([^\s;]+))?\s*;", re.M)


def name(site: Site) -> str:
    """
    Return its name; ``""`` where everybody may ask, since the web server is not ours and the setting is empty.

    site
        The site.
    """
    web = site.settings.web
    if web.group or web.server != "nginx":
        return web.group
    said = _USER.search(files.read(web.nginx_conf or "/etc/nginx/nginx.conf", "", "replace"))
    # As nginx has it: without a group, that of the user's name.
    return (said[2] or said[1]) if said else DEFAULT


def number(site: Site) -> int | None:
    """
    Return its number, None where everybody may ask.

    site
        The site.

    Raises ``FormulaError`` where there is no such group.
    """
    group = name(site)
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise FormulaError(
            f"there is no group {group}, which is to ask the app server; set ckan:web:group to that of the web server"
        ) from None
