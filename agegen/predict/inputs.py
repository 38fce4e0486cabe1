"""The inputs of a prediction: files, folders, globs, stdin, and tables or Parquet with images or paths."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from agegen.data.images import MAX_BYTES, is_hidden, is_image_name, looks_like_image
from agegen.data.manifests import PATH_COLUMNS
from agegen.data.remote import is_remote
from agegen.data.tables import extract_image, find_image_column, list_image_names
from agegen.errors import AgegenError, DataError, shorten
from agegen.hub import explain_failure
from agegen.predict.video import is_video_name

# Images per shard: few enough that little is lost if a process dies, enough to keep the number of files small.
SHARD_IMAGES = 1000
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
    if not looks_like_image(start):
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
            return looks_like_image(file.read(_START))
    except OSError:
        return False


# A path, or a name and what gives the file's content.
StoredPicture = str | tuple[str, bytes | Callable[[], bytes]]
_PARQUET = ".parquet"


@dataclass(frozen=True)
class Shard:
    """A part of the inputs: files by their names, or a row group of a Parquet file.

    Attributes:
        names: paths and addresses of pictures.
        table: path or address of a Parquet file, with its row ``group`` that begins at the row ``first``.
        count: how many pictures it has.
    """

    count: int
    names: tuple[str, ...] = ()
    table: str = ""
    group: int = 0
    first: int = 0


def is_store(name: str) -> bool:
    """Return whether an input is a Parquet file or lies at an address."""
    return is_remote(name) or name.lower().endswith(_PARQUET)


def list_shards(names: Iterable[str], size: int) -> Iterator[Shard]:
    """Yield the shards of inputs: pictures ``size`` at a time, Parquet files by their row groups.

    Raises:
        AgegenError: an address leads nowhere, or a Parquet file can't be read or has no pictures.
    """
    files: list[str] = []
    for name in names:
        for one in expand_address(name) if is_remote(name) else [name]:
            if not one.lower().endswith(_PARQUET):
                files.append(one)
                continue
            yield from _group_files(files, size)
            files = []
            yield from _list_groups(one)
        if len(files) >= size:
            whole = len(files) // size * size
            yield from _group_files(files[:whole], size)
            files = files[whole:]
    yield from _group_files(files, size)


def read_shard(shard: Shard) -> Iterator[StoredPicture]:
    """Yield the pictures of a shard; what lies at an address is fetched where it is decoded, by several threads.

    Raises:
        AgegenError: the Parquet file can't be read.
    """
    if shard.table:
        yield from _read_group(shard)
        return
    yield from map(find_picture, shard.names)


def find_picture(name: str) -> StoredPicture:
    """Return a picture by its path, or with what fetches it from its address."""
    return (name, partial(read_address, name)) if is_remote(name) else name


def expand_address(address: str) -> list[str]:
    """Return the addresses of pictures and Parquet files that a glob or a folder stands for, sorted; a file's own.

    Raises:
        AgegenError: nothing is there, or it can't be reached.
    """
    several = any(mark in address for mark in "*?[")
    if not several and is_image_name(Path(address)):
        # Whatever is wrong with it, a row of its own says so.
        return [address]
    filesystem, path = open_filesystem(address)
    try:
        if several:
            found = sorted(filesystem.glob(path))
        elif filesystem.isdir(path):
            every = sorted(filesystem.find(path))
            found = [name for name in every if is_image_name(Path(name)) or name.lower().endswith(_PARQUET)]
        else:
            return [address]
    except Exception as error:  # each kind of storage has errors of its own
        raise AgegenError(f"can't list {address}: {_explain(error)}") from error
    if not found:
        raise AgegenError(f"no picture and no Parquet file at {address}")
    return [filesystem.unstrip_protocol(name) for name in found]


def open_filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address or a path, and the path in it.

    Raises:
        AgegenError: the address is of no kind that is known, or its kind needs another package.
    """
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise AgegenError(f"{address}: {_explain(error)}") from error
    return filesystem, path


def read_address(address: str) -> bytes:
    """Return the content of a picture at an address.

    Raises:
        DataError: it isn't there, can't be reached, or is too large for a picture.
    """
    try:
        filesystem, path = open_filesystem(address)
        with filesystem.open(path, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except AgegenError as error:
        raise DataError(str(error)) from error
    except Exception as error:
        raise DataError(_explain(error)) from error
    if len(content) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES / 1e9:.1f} GB are too much for a picture")
    return content


def _group_files(files: list[str], size: int) -> Iterator[Shard]:
    for start in range(0, len(files), size):
        part = tuple(files[start : start + size])
        yield Shard(len(part), part)


def _list_groups(table: str) -> Iterator[Shard]:
    with _open_table(table) as file:
        _choose_columns(table, file.schema_arrow)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if rows:
                yield Shard(rows, table=table, group=group, first=first)
            first += rows


def _read_group(shard: Shard) -> Iterator[StoredPicture]:
    with _open_table(shard.table) as file:
        picture, path = _choose_columns(shard.table, file.schema_arrow)
        rows = file.read_row_group(shard.group, columns=[name for name in (picture, path) if name])
    numbers = range(shard.first, shard.first + shard.count)
    unnamed = [f"{shard.table}#{number}" for number in numbers]
    if picture is None:
        base = shard.table.rpartition("/")[0]
        for name in rows[path].to_pylist():
            yield find_picture(
                name if is_remote(name) or Path(name).is_absolute() else f"{base}/{name}" if base else name
            )
        return
    own = rows[path].to_pylist() if path else list_image_names(rows[picture])
    names = unnamed if own is None else [name or other for name, other in zip(own, unnamed, strict=True)]
    for name, cell in zip(names, rows[picture], strict=True):
        yield name, partial(extract_image, cell)


def _open_table(table: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        filesystem, path = open_filesystem(table)
        return pq.ParquetFile(path, filesystem=filesystem)
    except (pa.ArrowException, OSError) as error:
        raise AgegenError(f"can't read {table} as Parquet: {_explain(error)}") from error


def _choose_columns(table: str, schema: Any) -> tuple[str | None, str | None]:
    """Return the column with pictures, and that with their paths; either may be missing."""
    lower = {name.lower(): name for name in reversed(schema.names)}
    picture = find_image_column(schema)
    path = next((lower[name] for name in PATH_COLUMNS if name in lower and lower[name] != picture), None)
    if picture is None and path is None:
        raise AgegenError(f"{table} has no pictures: no column of bytes, and none called path; it has {schema.names}")
    return picture, path


def _explain(error: Exception) -> str:
    return shorten(getattr(error, "strerror", None) or explain_failure(error))
