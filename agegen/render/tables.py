"""Tables as plain text cells, for the terminal and for HTML alike: all of agegen's tables are made here."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

# Columns of words that stand among numbers.
_WORDS = ("better", "gender", "weights that ship, their licence", "input", "frozen")


@dataclass(frozen=True)
class PlainTable:
    """A table as text.

    Attributes:
        title: above it; ``caption`` below.
        columns: names; the first ``left`` of them hold text, the rest numbers.
        rows: cells, as many as columns.
        sections: indices of rows under which a line is drawn.
        alarms: indices of rows that tell of something broken.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: int = 1
    caption: str = ""
    sections: frozenset[int] = field(default_factory=frozenset)
    alarms: frozenset[int] = field(default_factory=frozenset)

    def is_text(self, index: int) -> bool:
        """Return whether a column holds text rather than numbers."""
        return index < self.left or self.columns[index] in _WORDS


def render_table(plain: PlainTable) -> Table:
    """Return a table for the terminal."""
    table = Table(
        title=Text(plain.title) if plain.title else None,
        title_justify="left",
        caption=Text(plain.caption) if plain.caption else None,
        caption_justify="left",
    )
    for index, name in enumerate(plain.columns):
        # Names of files may be long; they get the room that numbers leave.
        table.add_column(Text(name), justify="left" if plain.is_text(index) else "right", overflow="fold")
    for index, row in enumerate(plain.rows):
        cells = (Text(cell.encode("utf-8", errors="replace").decode()) for cell in row)
        table.add_row(*cells, end_section=index in plain.sections, style="red" if index in plain.alarms else None)
    return table
