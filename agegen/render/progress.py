"""Progress bars and notices on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from agegen.data.records import Exclusion


class ProgressDisplay:
    """Progress bars on a terminal, nothing elsewhere; a context manager that can be passed as a progress hook."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage."""
        self.update(stage, done, total)

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Show the progress of a stage; its bar disappears at the end, unless the total is unknown (None)."""
        task = self._tasks.get(stage)
        if task is None:
            task = self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
        self._progress.update(task, completed=done, total=total, note=note, visible=total is None or done < total)


def show_notices(console: Console, notices: tuple[str, ...]) -> None:
    """Print each notice on a new line."""
    for notice in notices:
        console.print(f"note: {notice}", style="yellow", soft_wrap=True)


def show_exclusions(console: Console, excluded: Sequence[Exclusion]) -> None:
    """Print how many rows were excluded, and the first of them with its reason; nothing if there are none."""
    if excluded:
        first = excluded[0]
        show_notices(console, (f"{len(excluded):,} rows excluded, the first: {first.path} ({first.reason})",))
