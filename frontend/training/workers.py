"""Processes that make images, which end with the process that began them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any

from frontend.errors import DataError

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def _die_with_parent() -> None:
    """In a worker: end when the parent does, also when that is killed; the pool's pipes would keep it for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def mapping(workers: int) -> Iterator[Map]:
    """``map`` in processes, in order, with few results at a time that wait.

    Args:
        workers: processes; 0 makes everything in this one.

    Raises:
        DataError: a process has been killed, for want of memory for instance.
    """
    if workers == 0:
        yield map
        return
    # not forked: a process with OpenCV's threads in it may hang in the child
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_die_with_parent)

    def run(make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        rest = iter(items)
        waiting = deque(pool.submit(make, item) for item in islice(rest, 3 * workers))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, item) for item in islice(rest, 1))
            yield made

    try:
        yield run
    except BrokenProcessPool:
        raise DataError("a process that makes images was killed (out of memory?); fewer workers need less") from None
    finally:
        pool.shutdown(cancel_futures=True)
