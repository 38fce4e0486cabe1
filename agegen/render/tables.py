"""Tables as plain text cells, for the terminal and for HTML alike."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class PlainTable:
    """A table as text: title, column names, rows; ``left`` columns from the left are text, the rest numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: int = 1


def render_table(plain: PlainTable) -> Table:
    """Return a table for the terminal."""
    table = Table(title=Text(plain.title), title_justify="left")
    for index, name in enumerate(plain.columns):
        table.add_column(name, justify="left" if index < plain.left or name == "better" else "right", overflow="fold")
    for row in plain.rows:
        table.add_row(*(Text(cell.encode("utf-8", errors="replace").decode()) for cell in row))
    return table
