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


@contextlib.contextmanager
def phases(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar while the block runs, which says for how long; yields a function to call with the name of a phase, and
    how many of its steps are done. Until it is called, only the time shows that work goes on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[phase]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, phase="")
        yield lambda phase, done, steps: bar.update(task, completed=done, total=steps, phase=phase)


def counted(items: Iterable[T], step: Callable[[], object]) -> Iterator[T]:
    """The same items, with a step after each."""
    for item in items:
        yield item
        step()
