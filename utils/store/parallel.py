"""CPU-bound work on all cores, in order, with no more in memory than the cores need."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from utils.devices import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_chunks(
    function: Callable[[list[Item]], Result],
    items: Iterable[Item],
    chunk: int,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Apply ``function`` to consecutive chunks of ``items`` in other processes; results in order.

    ``Executor.map`` would read all items ahead, so a few chunks a core are kept under way. What fits into
    one chunk is done in this process: starting others would take longer.

    Args:
        function: of a module's top level.
        items: any number, streamed.
        chunk: items a call.
        initializer: called once a process, with ``initargs``.
        initargs: of ``initializer``; inherited by the processes, not copied to them.
    """
    stream = iter(items)
    head = list(islice(stream, chunk + 1))
    if len(head) <= chunk:
        if initializer is not None:
            initializer(*initargs)
        if head:
            yield function(head)
        return
    cores = usable_cores()
    with ProcessPoolExecutor(
        cores, multiprocessing.get_context("fork"), initializer=initializer, initargs=initargs
    ) as pool:
        window = deque([pool.submit(function, head[:chunk])])
        rest = head[chunk:]
        while part := rest + list(islice(stream, chunk - len(rest))):
            rest = []
            window.append(pool.submit(function, part))
            if len(window) > 4 * cores:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
