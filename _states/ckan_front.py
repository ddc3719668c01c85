"""
The site's virtual host of nginx or Apache is there, and the server has read it; so are its certificate by ACME and the
WSGI pointers.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.errors import FormulaError
    from ckan_deploy.host import SaltHost
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import acme, pointers, virtual_host
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def installed(name: str) -> dict[str, Any]:
    """
    Make sure that the virtual host is what the settings say. A file that the server does not take is not left there:
    the one before is put back, the server goes on with it, and the state fails with the server's own words.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-front:
          ckan_front.installed: []
    """
    fine = "the virtual host is as it should be"
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": fine}
    try:
        # Taken here and not from arguments: the settings hold secrets, and states' arguments are logged.
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        if site.host.test:
            ret["changes"] = virtual_host.changes(site)
            if ret["changes"]:
                ret.update(result=None, comment=f"{next(iter(ret['changes']))} would be written")
            return ret
        done = virtual_host.install(site)
    except FormulaError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = done["changes"]
    if done["changes"]:
        how = "the server was reloaded" if done["reloaded"] else "the server reads it when it starts"
        ret["comment"] = f"{done['path']} was written, and {how}"
    return ret


def certified(name: str) -> dict[str, Any]:
    """
    Make sure that the site has the certificate of ``tls:acme``: certbot gets it through the virtual host that is there,
    which then serves https. Where that fails, the web server goes on with what it has.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-certificate:
          ckan_front.certified: []
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "the certificate is as it should be"}
    try:
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        if site.host.test:
            if why := acme.due(site):
                said = f"a certificate would be got from {site.settings.tls.acme.server}, since {why}"
                ret.update(result=None, changes={site.settings.tls.certificate: said}, comment=said)
            return ret
        ret["changes"] = acme.obtain(site)["changes"]
    except FormulaError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    if ret["changes"]:
        ret["comment"] = "; ".join(f"{path}: {how.splitlines()[0]}" for path, how in ret["changes"].items())
    return ret


def pointed(name: str) -> dict[str, Any]:
    """
    Make sure that a WSGI pointer is what the settings say. Nothing is started anew for it: processes take it when they
    start.

    name
        Its path, ``wsgi.py`` or ``apache.wsgi`` in ``paths:config``.

    .. code-block:: yaml

        /etc/ckan/default/wsgi.py:
          ckan_front.pointed: []
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "the pointer is as it should be"}
    try:
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        ret["changes"] = (pointers.changes if site.host.test else pointers.install)(site, name)
    except FormulaError as exc:
        return {**ret, "result": False, "comment": str(exc)}
    if ret["changes"]:
        ret["comment"] = f"{name} {'would be' if site.host.test else 'was'} written"
        ret["result"] = None if site.host.test else True
    return ret
