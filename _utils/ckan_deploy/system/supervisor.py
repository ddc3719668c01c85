"""
Supervisor, asked by XML-RPC over its socket: the one of the system, or one of our own. A start of ``supervisorctl``
takes a third of a second, a question here a few milliseconds.

https://supervisord.org/api.html names the calls and their faults.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import os
import time
import xmlrpc.client
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ckan_deploy.errors import FormulaError
from ckan_deploy.system.unix_http import UnixConnection

# Where supervisorctl looks, too, but for the directory that it happens to be called in.
CONFIGURATIONS = ("/etc/supervisord.conf", "/etc/supervisor/supervisord.conf")
# A supervisor that answers does so at once. One that stops a program takes what the program's file allows.
ANSWER_SECONDS = 30
# Of supervisor.xmlrpc.Faults.
SHUTDOWN_STATE, BAD_NAME, ALREADY_ADDED, STILL_RUNNING = 6, 10, 90, 91
POLL_SECONDS = 0.1


class NoSupervisor(FormulaError):
    """No supervisor answers."""


class Process(NamedTuple):
    """A process as supervisor says; ``pid`` is 0 where none runs."""

    state: str
    pid: int


def problem(conf: str) -> str:
    """
    Say what keeps supervisor from being asked, or ``''``.

    conf
        The configuration of a supervisor of our own; '' for the system's.
    """
    try:
        _call(conf, "getState")
    except FormulaError as exc:
        return str(exc).rstrip(".")
    return ""


def pid(conf: str) -> int:
    """
    Return the process id of supervisor itself.

    conf
        As for ``problem``.

    Raises ``FormulaError`` when it does not answer.
    """
    return int(_call(conf, "getPID"))


def processes(conf: str) -> dict[str, list[Process]]:
    """
    Return the processes of all groups; a program alone is a group of its own.

    conf
        As for ``problem``.

    Returns ``{group: [processes]}``. Raises ``FormulaError`` when supervisor does not answer.
    """
    found: dict[str, list[Process]] = {}
    for told in _call(conf, "getAllProcessInfo"):
        found.setdefault(told["group"], []).append(Process(told["statename"], told["pid"]))
    return found


def ends(conf: str, group: str) -> float | None:
    """
    Return when the last process of a group has ended, in seconds of the epoch; 0 where one runs, None for a group that
    is not known.

    conf, group
        As for ``update``.

    Raises ``FormulaError`` when supervisor does not answer.
    """
    mine = [told for told in _call(conf, "getAllProcessInfo") if told["group"] == group]
    if not mine:
        return None
    return 0.0 if any(told["pid"] for told in mine) else float(max(told["stop"] for told in mine))


def update(conf: str, group: str) -> None:
    """
    Let supervisor read the file of a group: one that is new is started, one that differs is stopped and started anew,
    one whose file is gone is stopped. All others are left alone.

    conf
        As for ``problem``.
    group
        The name of the group, or of the program.

    Raises ``FormulaError`` when supervisor does not answer, or cannot read its files.
    """
    added, changed, removed = ({*names} for names in _call(conf, "reloadConfig")[0])
    if group in changed | removed:
        remove(conf, group)
    if group in added | changed:
        _call(conf, "addProcessGroup", group, ignore=[ALREADY_ADDED])


def remove(conf: str, group: str) -> None:
    """
    Stop a group, for as long as its file allows, and let supervisor forget it. Nothing is read anew, so it works beside
    a file of others that supervisor cannot read. A group that is not known is left at that.

    conf, group
        As for ``update``.

    Raises ``FormulaError`` when supervisor does not answer, or cannot stop it.
    """
    stop(conf, group)
    # What was told to stop before is not waited for by supervisor, which ends it in its time; and another one may start
    # it in this very moment.
    while not _call(conf, "removeProcessGroup", group, ignore=[BAD_NAME, STILL_RUNNING]) and group in processes(conf):
        time.sleep(POLL_SECONDS)
        stop(conf, group)


def start(conf: str, group: str) -> None:
    """
    Start the processes of a group that do not run. Whether they stay up is not waited for.

    conf, group
        As for ``update``.

    Raises ``FormulaError`` when supervisor does not answer.
    """
    _call(conf, "startProcessGroup", group, False, ignore=[BAD_NAME])


def stop(conf: str, group: str) -> None:
    """
    Stop the processes of a group, and wait for their end: for as long as its file allows, after that supervisor kills
    them. A group that is not known is left at that.

    conf, group
        As for ``update``.

    Raises ``FormulaError`` when supervisor does not answer.
    """
    _call(conf, "stopProcessGroup", group, waits=True, ignore=[BAD_NAME])


def begin_stop(conf: str, group: str) -> None:
    """
    Send the processes of a group their stop signal, and do not wait for their end: supervisor kills them when it takes
    longer than their file allows. A group that is not known is left at that.

    conf, group
        As for ``update``.

    Raises ``FormulaError`` when supervisor does not answer.
    """
    _call(conf, "stopProcessGroup", group, False, ignore=[BAD_NAME])


def signal(conf: str, group: str, name: str) -> None:
    """
    Send the processes of a group a signal. A group that is not known, or does not run, is left at that.

    conf, group
        As for ``update``.
    name
        The name of the signal, such as ``KILL``.

    Raises ``FormulaError`` when supervisor does not answer.
    """
    _call(conf, "signalProcessGroup", group, name, ignore=[BAD_NAME])


def _call(conf: str, method: str, *arguments: Any, waits: bool = False, ignore: Iterable[int] = ()) -> Any:
    """What supervisor answers, ``waits`` for what takes as long as a program; None for a fault that is ignored."""
    timeout = None if waits else ANSWER_SECONDS
    with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(conf, timeout)) as proxy:
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as exc:
            if exc.faultCode in ignore:
                return None
            if exc.faultCode == SHUTDOWN_STATE:
                raise NoSupervisor("supervisor is shutting down; start it.") from exc
            raise FormulaError(f"supervisor refuses {method} ({exc.faultString}); mend that.") from exc
        except xmlrpc.client.ProtocolError as exc:
            raise NoSupervisor(f"supervisor does not answer ({exc.errcode} {exc.errmsg}); start it.") from exc
        except TimeoutError as exc:
            raise NoSupervisor(f"supervisor does not answer within {timeout} s; start it anew.") from exc
        except (OSError, http.client.HTTPException) as exc:
            said = getattr(exc, "strerror", None) or exc or type(exc).__name__
            raise NoSupervisor(f"supervisor does not answer ({said}); start it.") from exc


class _Transport(xmlrpc.client.Transport):
    """A connection to where the section ``supervisorctl`` of a configuration says."""

    def __init__(self, conf: str, timeout: float | None) -> None:
        super().__init__()
        self._address, self._timeout = _address(conf), timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """Connect to supervisor, whatever the host of the address is."""
        address = urlsplit(self._address.serverurl)
        if address.scheme == "unix":
            return UnixConnection(self._address.serverurl.removeprefix("unix://"), self._timeout)
        return http.client.HTTPConnection(address.netloc, timeout=self._timeout)

    def send_headers(self, connection: http.client.HTTPConnection, headers: Any) -> None:
        """Send the headers, and who asks."""
        super().send_headers(connection, headers)
        if self._address.username:
            said = base64.b64encode(f"{self._address.username}:{self._address.password}".encode()).decode()
            connection.putheader("Authorization", f"Basic {said}")


class _Address(NamedTuple):
    """Where supervisor listens, and as whom it is asked."""

    serverurl: str = "http://localhost:9001"
    username: str = ""
    password: str = ""


def _address(conf: str) -> _Address:
    path = conf or next(filter(os.path.exists, CONFIGURATIONS), "")
    if not path:
        raise NoSupervisor(f"there is no configuration of supervisor ({' or '.join(CONFIGURATIONS)}); install it.")
    # As supervisor reads it: %(here)s is the directory of the file, %(ENV_NAME)s a variable.
    known = {"here": os.path.dirname(os.path.abspath(path)), **{f"ENV_{name}": it for name, it in os.environ.items()}}
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        with open(path, encoding="utf-8") as handle:
            parser.read_file(handle)
        section = parser["supervisorctl"]
        return _Address(*(str(section.get(name, default)) % known for name, default in _Address()._asdict().items()))
    except OSError as exc:
        raise NoSupervisor(f"{path} cannot be read ({exc.strerror}); start supervisor.") from exc
    except (KeyError, TypeError, ValueError, configparser.Error) as exc:
        said = str(exc).splitlines()[0]
        raise NoSupervisor(f"{path} does not say where supervisor listens ({said}); mend [supervisorctl].") from exc
