"""Work on many items in threads, results in order, with a bounded number of them under way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
# How long a thread sleeps at most before it looks whether the reader has gone.
_PATIENCE = 0.2


class Waiting:
    """Stands in a stream for: the next result is not there yet; use the time."""


WAITING = Waiting()


def stream_in_order(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R | Waiting]:
    """Yield ``work(item)`` for each item, in order; :data:`WAITING` once wherever the next isn't ready.

    Items are drawn by a thread of their own, so that a slow source (a pipe) holds up no result; at most
    ``ahead`` of them are under way, so that memory stays flat. Whatever ``items`` or ``work`` raise comes
    out here, in its place.
    """
    futures: queue.Queue[Future[R] | None] = queue.Queue(maxsize=ahead)
    gone = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        feeder = threading.Thread(target=_feed, args=(work, items, pool, futures, gone), daemon=True)
        feeder.start()
        try:
            while True:
                future = _take_now(futures)
                if future is WAITING:
                    yield WAITING
                    future = futures.get()
                if not isinstance(future, Future):
                    return
                if not future.done():
                    yield WAITING
                yield future.result()
        finally:
            gone.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _take_now(futures: queue.Queue[Future[R] | None]) -> Future[R] | Waiting | None:
    try:
        return futures.get_nowait()
    except queue.Empty:
        return WAITING


def _feed(
    work: Callable[[T], R],
    items: Iterable[T],
    pool: ThreadPoolExecutor,
    futures: queue.Queue[Future[R] | None],
    gone: threading.Event,
) -> None:
    try:
        for item in items:
            if gone.is_set() or not _put(futures, pool.submit(work, item), gone):
                return
    except BaseException as error:
        failed: Future[R] = Future()
        failed.set_exception(error)
        _put(futures, failed, gone)
    _put(futures, None, gone)


def _put(futures: queue.Queue[Future[R] | None], future: Future[R] | None, gone: threading.Event) -> bool:
    while not gone.is_set():
        try:
            futures.put(future, timeout=_PATIENCE)
            return True
        except queue.Full:
            continue
    return False
