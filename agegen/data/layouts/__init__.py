"""The layouts that datasets come in, and how a folder is recognized by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from agegen.data.images import is_hidden
from agegen.data.layouts import file_names, label_tables
from agegen.data.records import FaceRecords
from agegen.data.tables import TABLE_SUFFIXES
from agegen.errors import DataError, shorten
from agegen.options import ReadOptions
from agegen.plugins import list_entry_points, load_entry_point

GROUP = "agegen.layouts"
# To describe an unknown folder: files to look at, and kinds of files to name.
_MOST_FILES, _KINDS_SHOWN = 10_000, 5
WEBDATASET_ADVICE = (
    ".tar files of WebDataset are not read: convert them, e.g. with datasets.load_dataset('webdataset', "
    "data_files='*.tar', split='train').flatten().to_parquet('faces.parquet')"
)
_ADVICE = {
    ".tar": WEBDATASET_ADVICE,
    ".zip": "Unpack .zip files first",
    ".gz": "Unpack .gz files first",
    ".mat": "Of .mat files, only imdb.mat and wiki.mat are read",
    ".tfrecord": "Convert .tfrecord files to Parquet",
}


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
    records = label_tables.read_any_tables(path, options)
    if records is not None:
        return records
    names = ", ".join(layout.NAME for layout in list_layouts())
    raise DataError(
        f"no usable face in {path}: it has none of the layouts that agegen knows ({names}). {describe_folder(path)}. "
        "`agegen help datasets` lists the files that each layout expects."
    )


def describe_folder(path: Path) -> str:
    """Return what a folder contains, by folder and kind of file, and what to do with files that agegen cannot read."""
    files = [file.relative_to(path) for file in islice(path.rglob("*"), _MOST_FILES) if file.is_file()]
    kinds = Counter((file.parent.as_posix(), file.suffix.lower()) for file in files if not is_hidden(file))
    if not kinds:
        return "It is empty"
    shown = [f"{n:,} {suffix or 'other'} in {folder}/" for (folder, suffix), n in kinds.most_common(_KINDS_SHOWN)]
    more = ", …" if len(kinds) > _KINDS_SHOWN else ""
    suffixes = {suffix for _, suffix in kinds}
    advice = [text for suffix, text in _ADVICE.items() if suffix in suffixes]
    if suffixes & set(TABLE_SUFFIXES) and not advice:
        advice = ["If several tables or folders are meant, give each with --data"]
    return ". ".join([f"It contains {shorten(', '.join(shown))}{more}", *advice])
