"""
The page of maintenance on all hosts of a run, while it migrates the database or takes it back.
"""

from __future__ import annotations


def close(ticket: dict) -> dict[str, str]:
    """
    Turn maintenance on, with workers and lines of cron stopped; a host that somebody else turned to it stays in it
    afterwards.

    ticket
        What the run knows; ``closed`` are the hosts to open again.

    Returns ``{host: why it could not be closed}``.

    CLI Example: not for the command line; use ``ckan.maintenance``.
    """
    about = {"reason": ticket["kind"], "by": ticket["by"], "stop_workers": True}
    told = __salt__["ckan_hosts.ask"](ticket["hosts"], "ckan_maintenance.on", about)
    answers, failures = told["results"], told["failures"]
    ticket["closed"] = [host for host, answer in answers.items() if host in failures or answer["changed"]]
    for host in [host for host in answers if host not in failures]:
        ticket["warnings"] += [f"{host}: {text}" for text in answers[host].get("warnings", [])]
    __salt__["ckan_record.save_run"](ticket)
    return failures


def open_again(ticket: dict) -> dict[str, str]:
    """
    Turn maintenance off on the hosts that the run has closed.

    ticket
        What the run knows.

    Returns ``{host: why it could not be opened}``.

    CLI Example: not for the command line; use ``ckan.maintenance``.
    """
    if not ticket.get("closed"):
        return {}
    told = __salt__["ckan_hosts.ask"](ticket["closed"], "ckan_maintenance.off", {"by": ticket["by"]})
    ticket["closed"] = sorted(told["failures"])
    return told["failures"]
