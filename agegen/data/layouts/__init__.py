"""The layouts that data sets come in, one file each, and how a folder is recognised by them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol

from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords
from agegen.entry_points import list_entries, load_entry
from agegen.errors import DataError

GROUP = "agegen.layouts"
# The order in which they are asked: those that need certain files first, those that look at names last.
_BUILT_IN = (
    *("fairface", "adience", "appa_real", "imdb_wiki", "people_tables", "celeba", "metadata", "shards"),
    *("utkface", "fgnet", "all_age_faces", "agedb", "afad", "labelled_folders"),
)


class Layout(Protocol):
    """A reader of one layout: an object with a name and a function; a module serves."""

    NAME: str
    """What is printed, e.g. ``FairFace``."""

    def read(self, path: Path, options: ReadOptions) -> FaceRecords | None:
        """Return the records of a folder or file, None where it has another layout."""


def list_layouts() -> Iterator[Layout]:
    """Yield the readers: those of other packages (entry point ``agegen.layouts``) first, then agegen's own.

    Raises:
        PluginError: a package's reader can't be loaded.
    """
    for entry in list_entries(GROUP):
        yield load_entry("layout", entry)
    for name in _BUILT_IN:
        module: Layout = import_module(f"{__name__}.{name}")
        yield module


def read_layout(path: Path, options: ReadOptions) -> FaceRecords:
    """Return the records of a folder by the first layout that it has.

    Raises:
        DataError: it has none that is known.
    """
    for layout in list_layouts():
        records = layout.read(path, options)
        if records is not None:
            return records
    names = ", ".join(layout.NAME for layout in list_layouts())
    raise DataError(f"no usable face in {path}: it has none of the layouts that agegen knows ({names})")
