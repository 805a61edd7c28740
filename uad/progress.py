"""Progress of long work, on stderr, so that stdout stays clean."""

import contextlib
from typing import Callable, Iterable, Iterator, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar while the block runs; yields a function to call after each of `total` steps (any thread)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def counted(items: Iterable[T], step: Callable[[], object]) -> Iterator[T]:
    """The same items, with a step after each."""
    for item in items:
        yield item
        step()
