"""Work in threads whose results come in order."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, stopped: threading.Event
) -> Generator[Result]:
    """The results of the items, one after another; a bounded number of them is in flight.

    Args:
        stopped: set when the results are no longer asked for, also by Ctrl-C: work that asks it now and then ends soon.
    """
    remaining = iter(items)
    futures: deque[Future[Result]] = deque()
    executor = ThreadPoolExecutor(threads)
    try:
        while True:
            for item in itertools.islice(remaining, 4 * threads - len(futures)):
                futures.append(executor.submit(work, item))
            if not futures:
                return
            yield futures.popleft().result()
    finally:
        stopped.set()
        executor.shutdown(cancel_futures=True)
