"""What ``agegen predict`` is given: files, folders, globs, and lists of paths on stdin."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from agegen.data.images import is_hidden, is_image_name
from agegen.errors import AgegenError

STDIN = "-"


def find_inputs(inputs: Iterable[str]) -> list[Path]:
    """Return the files that inputs name: files as they are, folders recursively, globs expanded; sorted in each.

    A file that isn't there stays, to become a row of its own; links to folders are not followed.

    Raises:
        AgegenError: a folder or glob has no picture.
    """
    paths: list[Path] = []
    for name in inputs:
        found = list(_expand(name))
        if not found:
            raise AgegenError(f"no picture in {name}")
        paths.extend(found)
    return paths


def read_path_list(stream: BinaryIO) -> Iterator[Path]:
    """Yield the paths of a list, one a line, as they arrive; empty lines are passed over."""
    for line in _read_lines(stream):
        name = line.rstrip(b"\r\n")
        if name:
            yield Path(os.fsdecode(name))


def _read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines, past Python's own buffer where there is a file below it.

    A thread waits here for more: one that holds the buffer's lock when the program ends makes Python abort.
    """
    try:
        handle = stream.fileno()
    except (OSError, ValueError):
        yield from stream
        return
    rest = b""
    while block := os.read(handle, 1 << 16):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _expand(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        yield from _walk(path)
    elif os.path.lexists(path) or not glob.has_magic(name):
        yield path
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        yield from (match for match in map(Path, matches) if not match.is_dir())


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the pictures in a folder; one that can't be listed stands for itself, to become a row with its reason."""
    refused: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: refused.append(Path(error.filename))):
        # What systems keep beside pictures: hidden names, thumbnails of a NAS, a Mac's metadata.
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        for name in sorted(names):
            path = Path(root, name)
            if is_image_name(path) and not is_hidden(Path(name)) and not path.is_dir():
                yield path
        while refused:
            yield refused.pop()
    yield from refused
