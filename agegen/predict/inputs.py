"""What ``agegen predict`` is given: files, folders, globs, and stdin with a list of paths or a picture."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from agegen.data.images import MAX_BYTES, is_hidden, is_image_name, looks_like_picture
from agegen.data.remote import is_remote
from agegen.errors import AgegenError
from agegen.predict.video import is_video_name

STDIN = "-"
# How many bytes tell a picture from a list of paths.
_START = 16


@dataclass
class FoundInputs:
    """The files to look at, by the names that they were given or have in their folders.

    ``passed`` counts what folders have besides, by the ending of its name.
    """

    names: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)

    def describe_passed(self) -> str | None:
        """Return in a line what was passed over, None where nothing was."""
        if not self.passed:
            return None
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.passed.most_common())
        return f"{self.passed.total():,} files in these folders are no pictures and were passed over: {kinds}"


def find_inputs(inputs: Iterable[str]) -> FoundInputs:
    """Return the files that inputs name: files as they are, folders recursively, globs expanded; sorted in each.

    A file that isn't there stays, to become a row of its own; links to folders are not followed. In folders, names that
    end like pictures' and videos' count, and files without an ending that begin as pictures do.

    Raises:
        AgegenError: a folder or glob has no picture.
    """
    found = FoundInputs()
    for name in inputs:
        before = len(found.names)
        _expand(name, found)
        if len(found.names) == before:
            passed = found.describe_passed()
            raise AgegenError(f"no picture in {name}" + (f"; {passed}" if passed else ""))
    return found


def read_stdin(stream: BinaryIO) -> bytes | Iterator[str]:
    """Return the picture that comes on stdin, or the paths of a list, one a line, as they arrive.

    Raises:
        AgegenError: a picture too large to be one.
    """
    blocks = _read_blocks(stream)
    start = b""
    for block in blocks:
        start += block
        # A short list may be all that comes for a while; of pictures, PNG alone begins with a line end in it.
        if len(start) >= _START or (b"\n" in start and start[:1] != b"\x89"):
            break
    if not looks_like_picture(start):
        return _split_lines(start, blocks)
    content = bytearray(start)
    for block in blocks:
        content += block
        if len(content) > MAX_BYTES:
            raise AgegenError("what comes on stdin is too large for a picture")
    return bytes(content)


def _split_lines(rest: bytes, blocks: Iterator[bytes]) -> Iterator[str]:
    """Yield the paths of a list as they arrive; empty lines are passed over."""
    while True:
        *lines, rest = rest.split(b"\n")
        yield from (os.fsdecode(line) for line in (line.rstrip(b"\r") for line in lines) if line)
        block = next(blocks, b"")
        if not block:
            break
        rest += block
    if last := rest.rstrip(b"\r\n"):
        yield os.fsdecode(last)


def _read_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield what arrives, past Python's own buffer where there is a file below it.

    A thread waits here for more: one that holds the buffer's lock when the program ends makes Python abort.
    """
    try:
        handle = stream.fileno()
    except (OSError, ValueError):
        yield from iter(lambda: stream.read(1 << 16), b"")
        return
    yield from iter(lambda: os.read(handle, 1 << 16), b"")


def _expand(name: str, found: FoundInputs) -> None:
    if is_remote(name):
        found.names.append(name)
    elif Path(name).is_dir():
        _walk(name, found)
    elif os.path.lexists(name) or not glob.has_magic(name):
        found.names.append(name)
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        found.names += [match for match in matches if not Path(match).is_dir()]


def _walk(folder: str, found: FoundInputs) -> None:
    """Note the pictures in a folder; one that can't be listed stands for itself, to become a row with its reason."""
    refused: list[str] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: refused.append(str(error.filename))):
        # What systems keep beside pictures: hidden names, thumbnails of a NAS, a Mac's metadata.
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        for name in sorted(name for name in names if not is_hidden(Path(name))):
            path = os.path.join(root, name)  # noqa: PTH118 - "./photos" stays as it was given
            if Path(path).is_dir():
                continue
            if is_image_name(Path(name)) or is_video_name(name) or (not Path(name).suffix and _begins_as_picture(path)):
                found.names.append(path)
            else:
                found.passed[Path(name).suffix.lower() or "without an ending"] += 1
        found.names += refused
        refused.clear()
    found.names += refused


def _begins_as_picture(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no Path for each of a million files
            return looks_like_picture(file.read(_START))
    except OSError:
        return False
