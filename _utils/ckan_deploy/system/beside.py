"""What is asked beside something else: each in a thread, and the other one is waited for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def running(function: Callable[[], T]) -> Iterator[Future[T]]:
    """
    Call a function in a thread for as long as the context lasts, and wait for its end.

    function
        What is called.

    Yields the future of what it returns.
    """
    # What Salt loads finds its context only in the calling thread, or in a copy of what that has.
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(contextvars.copy_context().run, function)
