"""Progress bars, progress in logs, and notices on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from agegen.errors import escape_controls, format_count

if TYPE_CHECKING:
    from agegen.data.records import Exclusion


# Seconds between two lines of progress in a log.
_LOG_INTERVAL = 30.0


class EscapingConsole(Console):
    """A console that prints control characters of the content as escapes, wherever the content comes from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object; see :meth:`rich.console.Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text, keep="\n\t"))


class ProgressDisplay:
    """Progress bars on a terminal, a line every 30 s elsewhere; a context manager and a progress hook."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged = time.monotonic()
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
        if not self._console.is_terminal:
            self._log(stage, done, total, note)
            return
        task = self._tasks.get(stage)
        if task is None:
            task = self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
        self._progress.update(task, completed=done, total=total, note=note, visible=total is None or done < total)

    def _log(self, stage: str, done: int, total: int | None, note: str) -> None:
        """Print a line about a stage unless the last one was printed less than 30 s ago."""
        now = time.monotonic()
        if now - self._logged < _LOG_INTERVAL:
            return
        self._logged = now
        of_total = f" of {total:,} ({100 * done // max(total, 1)} %)" if total is not None else ""
        self._console.print(f"{stage}: {done:,}{of_total}{note and f', {note}'}", soft_wrap=True)


def show_notices(console: Console, notices: tuple[str, ...]) -> None:
    """Print each notice on a new line."""
    for notice in notices:
        console.print(f"note: {escape_controls(notice)}", style="yellow", soft_wrap=True)


def show_exclusions(console: Console, excluded: Sequence[Exclusion]) -> None:
    """Print how many rows were excluded, and the first of them with its reason; nothing if there are none."""
    if excluded:
        first = excluded[0]
        rows = format_count(len(excluded), "row")
        show_notices(console, (f"{rows} excluded, the first: {first.path} ({first.reason})",))
