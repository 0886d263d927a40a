"""Reading ahead in threads: items come in order, a bounded number of them is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


def ahead(pool: ThreadPoolExecutor, prepare: Callable, items: Iterable, most: int) -> Iterator[tuple[object, Future]]:
    """Items in order with the futures of prepare(item), of which at most `most` are under way; leaving early cancels the rest."""
    under_way: deque[tuple[object, Future]] = deque()
    try:
        for item in items:
            under_way.append((item, pool.submit(prepare, item)))
            if len(under_way) > most:
                yield under_way.popleft()
        while under_way:
            yield under_way.popleft()
    finally:
        for _, future in under_way:
            future.cancel()
