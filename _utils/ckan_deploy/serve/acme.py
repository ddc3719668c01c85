"""
A certificate by ACME: certbot gets it through the site's own virtual host, renews it by its own timer, and lets the web
server read it. Each host has a certificate and a key of its own; no key leaves its host.
"""

from __future__ import annotations

import datetime
import http.client
import os
import re
import secrets
import shlex
import shutil
from typing import Any

from cryptography import x509

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import addresses, certificates, virtual_host
from ckan_deploy.system import files, processes, safely
from ckan_deploy.system.processes import Done

# certbot renews when a third of the time is left; from here on its timer cannot have run.
LEFT = 0.25
SECONDS = 600
ASK_SECONDS = 10
GOES_ON = "the portal goes on with what it has"
_REFUSED = re.compile(r"^\s*Domain:\s*(\S+)\s+Type:\s*(\S+)\s+Detail:\s*(.+?)\s*(?:^\s*$|\Z)", re.M | re.S)
_LIMITED = re.compile(r"rateLimited|rate limit|too many", re.I)
_UNREACHED = re.compile(
    r"ConnectionError|ConnectionRefused|Connection refused|Max retries|SSLError|Name or service not"
)
# What certbot says around the cause.
_NOISE = re.compile(r"^(Saving debug log|Ask for help|Hint:|Some challenges have failed|See the logfile|An unexpected)")


def due(site: Site) -> str:
    """
    Say why a certificate must be got, '' where the one that is there is as it should be.

    site
        The site.
    """
    try:
        there = x509.load_pem_x509_certificate(files.read(site.settings.tls.certificate).encode())
    except (OSError, ValueError):
        return "there is none that can be read"
    names, wanted = _names_in(there), sorted(certificates.names(site))
    if sorted(names) != wanted:
        return f"it is for {', '.join(names)}, not for {', '.join(wanted)}"
    now, end = datetime.datetime.now(datetime.timezone.utc), there.not_valid_after_utc
    if end - now < (end - there.not_valid_before_utc) * LEFT:
        return f"it ends on {end:%Y-%m-%d} and was not renewed"
    noted = files.read(os.path.join(_folder(site), "renewal", f"{_lineage(site)}.conf"), "")
    if f"server = {site.settings.tls.acme.server}\n" not in noted:
        return f"it is not renewed from {site.settings.tls.acme.server}"
    if certificates.webroot(site) not in noted or _hook(site) not in noted:
        return "it is not renewed through this virtual host"
    return ""


def obtain(site: Site) -> dict[str, Any]:
    """
    Get the certificate where it is due, and let the web server serve https with it. Renewal is certbot's own business,
    with a script that this writes.

    site
        The site.

    Returns ``{"changes": {what: how}, "certificate": path}``, without changes where all is as it should be. Raises
    ``FormulaError`` with the setting and the words of the CA; the web server goes on with what it has.
    """
    if not site.settings.tls.acme.email:
        raise FormulaError("ckan:tls:acme has no email, so no certificate is got; set it, or leave this out.")
    changes, path = {}, site.settings.tls.certificate
    if why := due(site):
        _refuse(site)
        _write_hook(site)
        done = processes.run(_command(site), env=_variables(site), timeout=SECONDS)
        if done.retcode != 0 or not certificates.https(site):
            raise FormulaError(f"{_problem(site, done)}; {GOES_ON}.")
        changes[path] = f"got from {site.settings.tls.acme.server}, since {why}"
    elif _write_hook(site):
        changes[_hook(site)] = "written"
    installed = virtual_host.install(site)
    if why and not installed["changes"]:
        virtual_host.reload(site)
    return {"changes": {**changes, **installed["changes"]}, "certificate": path}


def _folder(site: Site) -> str:
    return f"{site.settings.root}/etc/letsencrypt"


def _lineage(site: Site) -> str:
    return f"ckan-{site.settings.site}"


def _hook(site: Site) -> str:
    return os.path.join(site.paths.config, "certificate-renewed")


def _command(site: Site) -> list[str]:
    root, acme = site.settings.root, site.settings.tls.acme
    names = [part for name in certificates.names(site) for part in ("--domain", name)]
    return [
        "certbot", "certonly", "--non-interactive", "--agree-tos", "--no-eff-email", f"--email={acme.email}",
        "--server", acme.server, "--cert-name", _lineage(site), *names, "--renew-with-new-domains",
        # What is there is due, or not what is wanted.
        "--force-renewal",
        "--webroot", "--webroot-path", certificates.webroot(site), "--deploy-hook", _hook(site),
        "--config-dir", _folder(site), "--work-dir", f"{root}/var/lib/letsencrypt",
        "--logs-dir", f"{root}/var/log/letsencrypt",
    ]  # fmt: skip


def _variables(site: Site) -> dict[str, str]:
    bundle = site.settings.tls.acme.ca_bundle
    return {"REQUESTS_CA_BUNDLE": bundle} if bundle else {}


def _write_hook(site: Site) -> bool:
    """Write what certbot runs after a renewal; returns whether it was not there like this."""
    test, read = (shlex.join(command) for command in virtual_host.reload_commands(site))
    about = "# Written by the CKAN formula: certbot runs it when the certificate is renewed."
    text = f"#!/bin/sh\n{about}\n{test} && {read}\n"
    if files.read(_hook(site), "") == text:
        return False
    safely.ensure(os.path.dirname(_hook(site)))
    files.write(_hook(site), text, mode=0o755)
    return True


def _refuse(site: Site) -> None:
    """Refuse what would fail anyway, before the CA is asked: it counts failures, and bans who has many."""
    if not shutil.which("certbot"):
        raise FormulaError(
            f"certbot is not there, which ckan:tls:acme needs; install it, or run state.apply ckan.host; {GOES_ON}."
        )
    bundle = site.settings.tls.acme.ca_bundle
    if bundle and not os.path.isfile(bundle):
        raise FormulaError(f"there is no file {bundle} (ckan:tls:acme:ca_bundle); correct it; {GOES_ON}.")
    folder = certificates.webroot(site) + certificates.CHALLENGES
    safely.ensure(folder)
    token = f"formula-{secrets.token_hex(16)}"
    path = os.path.join(folder, token)
    files.write(path, token)
    try:
        for name in certificates.names(site):
            if said := _asked(site, name, token):
                listens = ", ".join(site.settings.web.listen)
                raise FormulaError(
                    f"{site.settings.web.server} does not answer challenges for {name} on {listens} "
                    f"(ckan:web:listen): {said}; run state.apply ckan.web and look which virtual host has that name; "
                    f"{GOES_ON}."
                )
    finally:
        os.unlink(path)


def _asked(site: Site, name: str, token: str) -> str:
    """Ask this host's web server for a challenge; returns what is wrong with the answer, '' for nothing."""
    place = addresses.listens(site.settings.web.listen)[0]
    host = addresses.loopback(place)
    connection = http.client.HTTPConnection(host, place.port, timeout=ASK_SECONDS)
    try:
        connection.request("GET", certificates.CHALLENGES + token, headers={"Host": name})
        answer = connection.getresponse()
        right = answer.read(len(token) + 1) == token.encode()
        return "" if right and answer.status == 200 else f"it answers {answer.status}"
    except (OSError, http.client.HTTPException) as exc:
        return str(exc) or type(exc).__name__
    finally:
        connection.close()


def _problem(site: Site, done: Done) -> str:
    """What kept certbot from getting a certificate, as a sentence with the setting."""
    acme, said = site.settings.tls.acme, f"{done.stdout}\n{done.stderr}"
    if refused := _REFUSED.findall(said):
        names = "; ".join(f"{name} ({kind}: {' '.join(detail.split())})" for name, kind, detail in refused)
        setting = "ckan:tls:acme:names" if acme.names else "ckan:domain and ckan:aliases"
        return (
            f"the CA could not confirm {names}: each name must lead to port 80 of this host; correct DNS, or "
            f"{setting}, or list all hosts behind the name in ckan:tls:acme:peers"
        )
    lines = [" ".join(line.split()) for line in said.splitlines()]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    words = telling[-1] if telling else f"exit code {done.retcode}"
    if limited := [line for line in telling if _LIMITED.search(line)]:
        return f"{acme.server} gives no certificate for now ({limited[-1]}); wait, or set another ckan:tls:acme:server"
    if _UNREACHED.search(said):
        return f"{acme.server} cannot be asked ({words}); correct ckan:tls:acme:server or ckan:tls:acme:ca_bundle"
    return f"certbot got no certificate from {acme.server} (ckan:tls:acme): {words}"


def _names_in(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName)
