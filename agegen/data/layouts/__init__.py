"""The layouts that datasets come in, and how a folder is recognized by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from agegen.data.layouts import file_names, label_tables
from agegen.data.records import FaceRecords
from agegen.errors import DataError
from agegen.options import ReadOptions
from agegen.plugins import list_entry_points, load_entry_point

GROUP = "agegen.layouts"


class Layout(Protocol):
    """A reader of one layout: an object with a name and a function; a module is one, too."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a constant of a module or class
        """The name that is printed, e.g. ``FairFace``."""

    def read(self, path: Path, options: ReadOptions, /) -> FaceRecords | None:
        """Return the records of a folder or file; None if it has another layout."""


def list_layouts() -> Iterator[Layout]:
    """Yield the readers: those of other packages (entry point ``agegen.layouts``) first, then the built-in ones.

    Raises:
        PluginError: a package's reader cannot be loaded.
    """
    for plugin in list_entry_points(GROUP):
        yield load_entry_point("layout", plugin)
    # Layouts that require certain files come before those that look at names.
    yield from label_tables.LAYOUTS
    yield from file_names.LAYOUTS


def read_layout(path: Path, options: ReadOptions) -> FaceRecords:
    """Return the records of a folder, read by the first layout that matches.

    Raises:
        DataError: no known layout matches.
    """
    for layout in list_layouts():
        records = layout.read(path, options)
        if records is not None:
            return records
    names = ", ".join(layout.NAME for layout in list_layouts())
    raise DataError(f"no usable face in {path}: it has none of the layouts that agegen knows ({names})")
