"""Progress of long work, on stderr, so that stdout stays clean."""

import contextlib
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar while the block runs; yields a function to call after each of `total` steps (any thread).

    No bar is shown for no step.
    """
    if total == 0:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar, _no_half_bar(bar):
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
    with Progress(*columns, console=Console(stderr=True)) as bar, _no_half_bar(bar):
        task = bar.add_task(title, total=None, phase="")
        yield lambda phase, done, steps: bar.update(task, completed=done, total=steps, phase=phase)


def with_steps(items: Iterable[T], step: Callable[[], object]) -> Iterator[T]:
    """The same items, with a step after each."""
    for item in items:
        yield item
        step()


@contextlib.contextmanager
def _no_half_bar(bar: "Progress") -> Iterator[None]:
    """Take a bar away when the work is broken off: what is left to read is why."""
    try:
        yield
    except BaseException:
        bar.live.transient = True
        raise
