"""
The seam between the package and Salt's minion: what the package needs of it, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from salt.exceptions import CommandExecutionError, SaltException, SaltInvocationError

from ckan_deploy.errors import FormulaError, InvalidArgument, sentence
from ckan_deploy.system import arguments, files

# The minion itself, where it has loaded the package with the grains.
_LOADED_BY = os.getpid()


class Host(Protocol):
    """What Salt gives on a minion. Tests hand in a plain object with the same members."""

    @property
    def id(self) -> str:
        """The minion's id."""

    @property
    def pillar(self) -> Mapping[str, Any]:
        """The whole pillar of the minion, as it is known now."""

    @property
    def test(self) -> bool:
        """Whether nothing is to be changed (``test=True``)."""

    @property
    def stays(self) -> bool:
        """Whether this is a minion that runs on, and so can do something later."""

    def refresh_pillar(self) -> bool:
        """Take the pillar anew from the master; returns whether there was one to take. Raises ``FormulaError``."""

    def file(self, source: str) -> str:
        """Return a copy on this host of a file of the file server, '' for none. Raises ``FormulaError``."""

    def download(self, source: str, target: str) -> str:
        """Fetch an address into a file; returns its path, '' for none. Raises ``FormulaError``, ``OSError``."""

    def push(self, path: str, name: str) -> bool:
        """Give a file to the master, under a name among those of this minion; returns whether it took it."""

    def has(self, function: str) -> bool:
        """Whether there is an execution function of that name."""

    def call(self, function: str, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Call an execution function that a hook names; returns its answer and its exit code."""

    def schedule(self, name: str, function: str, seconds: int) -> bool:
        """Call a function once, later; returns whether that was arranged."""

    def unschedule(self, name: str) -> None:
        """Take back what ``schedule`` arranged."""


class SaltHost:
    """``Host`` by the dunders of an execution module or a state, given as they are: ``__salt__`` and so on."""

    def __init__(
        self, functions: Any, opts: Mapping[str, Any], pillar: MutableMapping[str, Any],
        context: MutableMapping[str, Any],
    ) -> None:  # fmt: skip
        # What the loader hands out is bound to the calling thread; this is not.
        self._functions: Mapping[str, Callable[..., Any]] = _plain(functions)
        self._opts: Mapping[str, Any] = _plain(opts)
        self._pillar: MutableMapping[str, Any] = _plain(pillar)
        self._context: MutableMapping[str, Any] = _plain(context)
        # Salt's connection to the master is for one call at a time, and extensions are prepared in threads.
        self._asking = threading.Lock()
        # What was fetched for this very job: fetched before threads begin, it changes no umask under them.
        self._fetched: dict[str, str] = {}

    @property
    def id(self) -> str:
        return str(self._opts["id"])

    @property
    def pillar(self) -> Mapping[str, Any]:
        return self._pillar

    @property
    def test(self) -> bool:
        return bool(self._opts.get("test"))

    @property
    def stays(self) -> bool:
        return bool(self._opts.get("__cli") == "salt-minion")

    def refresh_pillar(self) -> bool:
        # ``saltutil.refresh_pillar`` is true also where it fails, and the pillar stays as it was. ``salt-call`` has
        # rendered it for this very call.
        if not self.stays:
            return False
        with _package_errors(), self._asking:
            rendered = self._functions["pillar.items"](unmask=True)
        for name in ("ckan", "ckan_fleet", "_errors"):
            self._pillar.pop(name, None)
            if name in rendered:
                self._pillar[name] = rendered[name]
        return True

    def file(self, source: str) -> str:
        with _package_errors(), self._asking:
            if source not in self._fetched:
                with files.umask_kept():
                    self._fetched[source] = str(self._functions["cp.cache_file"](source) or "")
            return self._fetched[source]

    def download(self, source: str, target: str) -> str:
        with _package_errors(), self._asking, files.umask_kept():
            return str(self._functions["cp.get_url"](source, target) or "")

    def push(self, path: str, name: str) -> bool:
        with _package_errors(), self._asking:
            return bool(self._functions["cp.push"](path, upload_path=name))

    def has(self, function: str) -> bool:
        return function in self._functions

    def call(self, function: str, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        # A program that fails leaves its exit code there, and Salt would take it for that of the whole job.
        before = self._context.pop("retcode", 0)
        try:
            with _package_errors():
                answer = self._functions[function](*args, **kwargs)
            return answer, int(self._context.get("retcode", 0))
        finally:
            self._context["retcode"] = before

    def schedule(self, name: str, function: str, seconds: int) -> bool:
        with _package_errors():
            done = self._functions["schedule.add"](
                name, function=function, seconds=seconds, run_on_start=False, maxrunning=1
            )
        return bool(done["result"])

    def unschedule(self, name: str) -> None:
        with _package_errors():
            if self._functions["schedule.is_enabled"](name):
                self._functions["schedule.delete"](name)


@contextlib.contextmanager
def salt_errors() -> Iterator[None]:
    """Raise the package's errors as Salt's, for a thin module."""
    try:
        yield
    except InvalidArgument as exc:
        raise SaltInvocationError(str(exc)) from exc
    except FormulaError as exc:
        raise CommandExecutionError(str(exc)) from exc
    except OSError as exc:
        if exc.errno == errno.EROFS:
            raise CommandExecutionError(sentence(exc)) from exc
        where = f" ({exc.filename})" if exc.filename else ""
        raise CommandExecutionError(f"{os.strerror(exc.errno) if exc.errno else exc}{where}") from exc


@contextlib.contextmanager
def _package_errors() -> Iterator[None]:
    """Raise Salt's errors, such as that of a master that does not answer, as the package's: a deploy is reverted."""
    try:
        yield
    except SaltException as exc:
        raise FormulaError(str(exc).strip() or type(exc).__name__) from exc


def _plain(dunder: Any) -> Any:
    return dunder.value() if hasattr(dunder, "value") and callable(dunder.value) else dunder


def fit_arguments(module: dict[str, Any]) -> None:
    """
    Let the public functions of a thin module refuse arguments that they do not take, with the name that was meant, and
    those of another type. Salt would say that they are not valid, or pass them on.

    module
        The names of the module, ``globals()``; called at its end.
    """
    alias = module.get("__func_alias__", {})
    shown = module.get("__virtualname__") or module["__name__"].rpartition(".")[2]
    for name, function in list(module.items()):
        if inspect.isfunction(function) and function.__module__ == module["__name__"] and name[0] != "_":
            module[name] = _fitting(f"{shown}.{alias.get(name, name)}", function)


def _fitting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() != _LOADED_BY:
            # A job is a fork of the minion, and ends soon: no search for garbage (0.05 s each) in what the minion has.
            gc.freeze()
        with salt_errors():
            by_place, by_name = arguments.typed(function, args, arguments.fit(name, function, args, kwargs))
        return function(*by_place, **by_name)

    # Salt looks at this, so that any argument comes this far.
    del called.__wrapped__
    rest = inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD)
    known = inspect.signature(function)
    called.__signature__ = known.replace(parameters=[*known.parameters.values(), rest])  # type: ignore[attr-defined]
    return called
