"""
The seam between the fleet and Salt's master: what the package needs of it, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import salt.client
import salt.fileserver
import salt.key
import salt.pillar
import salt.utils.event
import salt.utils.minions
import salt.utils.user
from salt.exceptions import SaltException

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import version

# Waits for an event of the master's bus, so many seconds at most: its tag and what it holds, or None.
NextEvent = Callable[[int], "tuple[str, dict[str, Any]] | None"]

# Salt's own client looks a hundred times a second whether an answer has come.
ANSWER_WAIT = 0.25
NO_RETURN = "Minion did not return"
# Who tells of a pillar that does not render.
RENDERERS = ("salt.pillar", "salt.utils.templates")
PGP_BLOCK = re.compile(r"-----BEGIN PGP.*?-----END PGP [A-Z ]+-----", re.S)


class Answer(NamedTuple):
    """What a minion said, and its exit code; ``came`` is False where it did not answer."""

    host: str
    value: Any
    retcode: int = 0
    came: bool = True


class Master(Protocol):
    """What Salt gives on a master. Tests hand in a plain object with the same members."""

    @property
    def cachedir(self) -> str:
        """The directory in which the master keeps what it knows."""

    @property
    def keyring(self) -> str:
        """The directory of the master's GPG keys, as its renderer finds it."""

    @property
    def user(self) -> str:
        """Who gives the command; behind sudo, too."""

    def minions(self) -> list[str]:
        """Return the ids of the accepted minions."""

    def pillar(self, minion: str, must_decrypt: bool = True) -> Mapping[str, Any]:
        """Return the pillar of a minion as it renders now, with ``_errors`` where it does not."""

    def remembered_pillar(self, minion: str) -> Mapping[str, Any]:
        """Return the pillar of a minion as it was when the minion last asked for it."""

    def own_pillar(self) -> Mapping[str, Any]:
        """Return the pillar of the master's own minion, which an orchestration sees, too."""

    def ask(self, hosts: Sequence[str], function: str, kwargs: Mapping[str, Any], timeout: int) -> Iterator[Answer]:
        """Call a function on minions; yields answers as they come. Raises ``FormulaError`` where no job is taken."""

    def fire(self, data: Mapping[str, Any], tag: str) -> None:
        """Put an event on the master's bus."""

    def listen(self) -> contextlib.AbstractContextManager[NextEvent]:
        """Listen to the master's bus for as long as the context lasts."""

    @property
    def handing_over(self) -> str:
        """What the master's configuration lacks to hand over files from minion to minion, in lines; '' for nothing."""

    def forget_pushed(self, minion: str, folder: str) -> None:
        """Remove what a minion has put into a directory among its files on the master."""

    def files(self) -> dict[str, bytes]:
        """Return the formula's modules and package as they are in the file server."""


class SaltMaster:
    """``Master`` by the ``__opts__`` of a runner."""

    def __init__(self, opts: Any) -> None:
        # What the loader hands out is bound to the calling thread; this is not.
        self._opts: dict[str, Any] = opts.value() if callable(getattr(opts, "value", None)) else opts
        # A connection to the bus takes as much time as ten events: one for each thread that tells something.
        self._buses: dict[int, Any] = {}
        weakref.finalize(self, _let_go, self._buses)

    @property
    def cachedir(self) -> str:
        return str(self._opts["cachedir"])

    @property
    def keyring(self) -> str:
        return str(self._opts.get("gpg_keydir") or os.path.join(self._opts["config_dir"], "gpgkeys"))

    @property
    def user(self) -> str:
        return str(salt.utils.user.get_specific_user())

    def minions(self) -> list[str]:
        return list(salt.key.get_key(self._opts).list_keys()["minions"])

    def pillar(self, minion: str, must_decrypt: bool = True) -> Mapping[str, Any]:
        # In an orchestration they hold the pillar of the master's own minion, and Salt would begin with that. It also
        # sets the grains in what it is given.
        opts = {**self._opts, "pillar": {}, **({} if must_decrypt else {"gpg_decrypt_must_succeed": False})}
        # What is wrong with a pillar, and where: what of it is shown is chosen in ``hosts``.
        opts["pillar_safe_render_error"] = False
        _, grains, _ = salt.utils.minions.get_minion_data(minion, opts)
        log = contextlib.nullcontext() if must_decrypt else _nothing_logged()
        with _said_shortly(), _lines_noted() as lines, log:
            found = salt.pillar.Pillar(opts, grains or {"fqdn": minion}, minion, "base").compile_pillar()
        if "_errors" in found:
            found["_errors"] = [f"{each}{lines.get(each, '')}" for each in found["_errors"]]
        return dict(found)

    def remembered_pillar(self, minion: str) -> Mapping[str, Any]:
        _, _, found = salt.utils.minions.get_minion_data(minion, self._opts)
        return found or {}

    def own_pillar(self) -> Mapping[str, Any]:
        opts = {**self._opts, "pillar": {}}
        return dict(salt.pillar.Pillar(opts, {}, opts["id"], "base").compile_pillar())

    def ask(self, hosts: Sequence[str], function: str, kwargs: Mapping[str, Any], timeout: int) -> Iterator[Answer]:
        try:
            with _client(self._opts) as client:
                told = client.cmd_iter(list(hosts), function, kwarg=dict(kwargs), tgt_type="list", timeout=timeout)
                for answers in told:
                    for host, answer in (answers or {}).items():
                        yield _answer(host, answer)
        except SaltException as exc:
            raise FormulaError(
                f"the master does not take jobs ({str(exc).strip() or type(exc).__name__}); start salt-master"
            ) from exc

    def fire(self, data: Mapping[str, Any], tag: str) -> None:
        me = threading.get_ident()
        if me in self._buses:
            with contextlib.suppress(Exception):  # of a master that was started anew meanwhile
                return self._fire(self._buses[me], data, tag)
            self._buses.pop(me).destroy()
        self._buses[me] = salt.utils.event.get_master_event(self._opts, self._opts["sock_dir"], listen=False)
        self._fire(self._buses[me], data, tag)

    @staticmethod
    def _fire(bus: Any, data: Mapping[str, Any], tag: str) -> None:
        if bus.fire_event(dict(data), tag) is False:
            raise OSError("the master's event bus does not answer")

    @contextlib.contextmanager
    def listen(self) -> Iterator[NextEvent]:
        with salt.utils.event.get_master_event(self._opts, self._opts["sock_dir"], listen=True) as bus:

            def following(wait: int) -> tuple[str, dict[str, Any]] | None:
                event = bus.get_event(wait=wait, full=True)
                return (event["tag"], event["data"]) if event else None

            yield following

    @property
    def handing_over(self) -> str:
        backends = list(self._opts.get("fileserver_backend") or [])
        lacks = [] if self._opts.get("file_recv") else ["file_recv: True"]
        if not {"minionfs", "minion"} & {*backends}:
            lacks.append(f"fileserver_backend: [{', '.join([*backends, 'minionfs'])}]")
        usual = {"minionfs_mountpoint": "", "minionfs_env": "base"}
        return "; ".join([*lacks, *(f"no {name}" for name, value in usual.items() if self._opts.get(name) != value)])

    def forget_pushed(self, minion: str, folder: str) -> None:
        shutil.rmtree(os.path.join(self.cachedir, "minions", minion, "files", folder), ignore_errors=True)

    def files(self) -> dict[str, bytes]:
        server = salt.fileserver.Fileserver(self._opts)
        server.update()
        found = {}
        for prefix in ("_modules", "_utils/ckan_deploy"):
            for name in server.file_list({"saltenv": "base", "prefix": prefix}):
                path = version.COUNTED.fullmatch(name) and server.find_file(name, "base")["path"]
                if path:  # the list is cached, and may be older than the file's removal
                    with open(path, "rb") as handle:
                        found[name] = handle.read()
        return found


class _Client(salt.client.LocalClient):  # type: ignore[misc]
    """Salt's client, which sleeps until an event comes where it would look for one again and again."""

    def get_returns_no_block(self, tag: str, match_type: str | None = None) -> Iterator[dict[str, Any] | None]:
        """Yield events of a job, and None where there is none at once: the caller looks after its time limits then."""
        look = functools.partial(
            self.event.get_event, tag=tag, match_type=match_type, full=True, auto_reconnect=self.auto_reconnect
        )
        while True:
            found = look(wait=0.01, no_block=True)
            yield found
            # Who comes back after that still waits for somebody.
            if found is None and (found := look(wait=ANSWER_WAIT)) is not None:
                yield found


class _Spare(threading.local):
    """Clients that a thread has used, and that nothing is asked by at the moment: by process and bus."""

    def __init__(self) -> None:
        self.clients: dict[tuple[int, str], list[_Client]] = {}


_spare = _Spare()


@contextlib.contextmanager
def _client(opts: Mapping[str, Any]) -> Iterator[_Client]:
    """
    A client that was used before, if there is one: a new one loads Salt's modules, which takes longer than to ask a
    host. It has no connection to the bus while it is spare.
    """
    spare = _spare.clients.setdefault((os.getpid(), str(opts["sock_dir"])), [])
    client = spare.pop() if spare else _Client(mopts=opts)
    try:
        yield client
    except BaseException:
        client.destroy()
        raise
    client.event.close_pub()
    spare.append(client)


def _let_go(buses: dict[int, Any]) -> None:
    for bus in buses.values():
        with contextlib.suppress(Exception):
            bus.destroy()
    buses.clear()


def _answer(host: str, answer: Any) -> Answer:
    if not isinstance(answer, dict):
        return Answer(host, None, came=False)
    value = answer.get("ret")
    came = "ret" in answer and not str(value).startswith(NO_RETURN)
    return Answer(host, value, answer.get("retcode", 0), came)


@contextlib.contextmanager
def _nothing_logged() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _lines_noted() -> Iterator[dict[str, str]]:
    """What is to be added to errors of a pillar: the line, which Salt knows and leaves out where YAML is not valid."""
    lines: dict[str, str] = {}

    def note(record: logging.LogRecord) -> bool:
        exc = record.exc_info[1] if record.exc_info else None
        if (line := getattr(exc, "line_num", None)) and not re.search(r"\bline \d", message := record.getMessage()):
            lines[message] = f"; line {line}"
        return True

    logger = logging.getLogger("salt.pillar")
    logger.addFilter(note)
    try:
        yield lines
    finally:
        logger.removeFilter(note)


@contextlib.contextmanager
def _said_shortly() -> Iterator[None]:
    """
    Salt writes the whole of a block that it cannot decrypt, more than once; a word will do. And a hundred lines of each
    template that does not render: on the terminal the sentence of whoever asked is enough, the log file has it all.
    """

    def shorten(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "-----BEGIN PGP" in message:
            record.msg, record.args = PGP_BLOCK.sub("(encrypted)", message), ()
            record.exc_info = record.exc_text = None
        return True

    def is_told_otherwise(record: logging.LogRecord) -> bool:
        return record.name not in RENDERERS or record.levelno < logging.ERROR

    rules = [(handler, shorten) for handler in logging.root.handlers]
    rules += [(handler, is_told_otherwise) for handler in logging.root.handlers if is_terminal(handler)]
    for handler, rule in rules:
        handler.addFilter(rule)
    try:
        yield
    finally:
        for handler, rule in rules:
            handler.removeFilter(rule)


def is_terminal(handler: logging.Handler | None) -> bool:
    """
    Say whether a handler of logs writes for whoever has typed the command, and not into a file.

    handler
        The handler.
    """
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
