"""Items that are made in a thread while earlier ones are used."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Given = TypeVar("Given")
Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Generator[Item]:
    """The items, of which the next one is made in a thread while this one is used.

    No more than one is made ahead. An error of the iterable is raised where its item would have
    come. Closing the iterator waits for the item that is being made, and ends the thread.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming: Any = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item


def in_groups(
    items: Iterable[Given], make: Callable[[Given], Item], length: int
) -> Iterator[list[Item]]:
    """What is made of each item, in lists of that length; the last one may be shorter.

    An error is raised after what was made before it.
    """
    group: list[Item] = []
    try:
        for item in items:
            group.append(make(item))
            if len(group) == length:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group
