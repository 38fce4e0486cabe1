"""The inputs of a prediction: files, folders, globs, stdin, addresses, and Parquet with images or paths."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from agegen.data.images import MAX_BYTES, is_hidden, is_image_name, looks_like_image
from agegen.data.manifests import PATH_COLUMNS
from agegen.data.remote import is_remote
from agegen.data.tables import extract_image, find_image_column, list_image_names
from agegen.errors import AgegenError, DataError, format_count, shorten
from agegen.hub import explain_failure
from agegen.predict.video import HEADER_BYTES, begins_as_image, is_video_name

# The content of an image file, or a function that returns it.
FileContent = bytes | Callable[[], bytes]
# An image: its path, or its name and content.
ImageSource = str | os.PathLike[str] | tuple[str, FileContent]

# Images per shard: few enough that a dying process loses little, enough to avoid a flood of files.
SHARD_IMAGES = 1000
# PNG is the only image format that has a line end in its header.
_PNG_START = b"\x89"
_READ_BYTES = 1 << 16
_PARQUET = ".parquet"


@dataclass
class FoundInputs:
    """The files to process, named as given or found.

    ``ignored`` counts other files in folders, by extension; ``outputs`` are folders of outputs, which are skipped.
    """

    names: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    outputs: list[str] = field(default_factory=list)

    def describe_ignored(self) -> str | None:
        """Return one line about the ignored files and folders, None if there are none."""
        lines = []
        if self.ignored:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.ignored.most_common())
            lines.append(f"ignored {format_count(self.ignored.total(), 'file')} in these folders, not images: {kinds}")
        if self.outputs:
            lines.append(f"skipped the outputs in {', '.join(self.outputs)}")
        return "; ".join(lines) or None


@dataclass(frozen=True)
class Shard:
    """A part of the inputs: a list of files, or a row group of a Parquet file.

    Attributes:
        count: number of images.
        names: paths and addresses of images.
        table: path or address of a Parquet file.
        group: the row group, and ``first`` the number of its first row.
    """

    count: int
    names: tuple[str, ...] = ()
    table: str = ""
    group: int = 0
    first: int = 0


def find_inputs(inputs: Iterable[str], outputs: Iterable[Path] = ()) -> FoundInputs:
    """Return the files that inputs stand for: files, the content of folders (recursively) and of globs, sorted in each.

    Files that do not exist are included and become unreadable rows; links to folders are not followed. In folders,
    files with the extension of an image or video count, and files without an extension that begin like an image.

    Args:
        inputs: names of files, folders and globs.
        outputs: folders of annotated copies and crops, skipped where a folder contains or a glob matches them.

    Raises:
        AgegenError: a folder or glob contains no image.
    """
    found = FoundInputs()
    skipped = {os.path.realpath(path) for path in outputs}
    for name in inputs:
        before = len(found.names)
        _expand(name, found, skipped)
        if len(found.names) == before:
            ignored = found.describe_ignored()
            raise AgegenError(f"no images in {name}" + (f" ({ignored})" if ignored else ""))
    return found


def find_folder(name: str) -> Path:
    """Return the folder of an input; of a glob, the part before its first wildcard."""
    path = Path(name)
    if path.is_dir():
        return path
    if os.path.lexists(path) or not glob.has_magic(name):
        return path.parent
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))


def read_stdin(stream: BinaryIO) -> bytes | Iterator[str]:
    """Return the image on stdin, or an iterator over a list of paths, one per line, as they arrive.

    Raises:
        AgegenError: the image is too large, or it is something else.
    """
    blocks = _read_blocks(stream)
    start = b""
    for block in blocks:
        start += block
        # A short list may be all that arrives for a while: one line is enough to recognise it.
        if len(start) >= HEADER_BYTES or (b"\n" in start and not start.startswith(_PNG_START)):
            break
    if not looks_like_image(start):
        if b"\0" in start:
            raise AgegenError(
                "stdin is neither a known kind of image nor a list of paths, one per line. Give a video by its name."
            )
        return _split_lines(start, blocks)
    content = bytearray(start)
    for block in blocks:
        content += block
        if len(content) > MAX_BYTES:
            raise AgegenError(f"the image on stdin is larger than {MAX_BYTES / 1e9:.1f} GB")
    return bytes(content)


def is_parquet_or_remote(name: str) -> bool:
    """Return whether an input is a Parquet file or a remote address."""
    return is_remote(name) or name.lower().endswith(_PARQUET)


def list_shards(names: Iterable[str], size: int = SHARD_IMAGES) -> Iterator[Shard]:
    """Yield the shards of inputs: ``size`` images each, and the row groups of Parquet files.

    Raises:
        AgegenError: an address does not exist, or a Parquet file is unreadable or has no images.
    """
    files: list[str] = []
    for name in names:
        for one in expand_address(name) if is_remote(name) else [name]:
            if not one.lower().endswith(_PARQUET):
                files.append(one)
                continue
            yield from _group_files(files, size)
            files = []
            yield from _list_row_groups(one)
        if len(files) >= size:
            full = len(files) // size * size
            yield from _group_files(files[:full], size)
            files = files[full:]
    yield from _group_files(files, size)


def read_shard(shard: Shard) -> Iterator[ImageSource]:
    """Yield the images of a shard; remote ones are downloaded later, by the threads that decode.

    Raises:
        AgegenError: the Parquet file cannot be read.
    """
    if shard.table:
        yield from _read_row_group(shard)
        return
    yield from map(make_source, shard.names)


def make_source(name: str) -> ImageSource:
    """Return an image by its path, or by its address and the function that downloads it."""
    return (name, partial(read_address, name)) if is_remote(name) else name


def expand_address(address: str) -> list[str]:
    """Return the addresses of the images and Parquet files in a remote folder or glob, sorted; otherwise ``address``.

    Raises:
        AgegenError: nothing was found, or the storage cannot be reached.
    """
    is_glob = any(mark in address for mark in "*?[")
    if not is_glob and is_image_name(Path(address)):
        # If it cannot be read, its row says why.
        return [address]
    filesystem, path = open_filesystem(address)
    try:
        if is_glob:
            found = sorted(filesystem.glob(path))
        elif filesystem.isdir(path):
            names = sorted(filesystem.find(path))
            found = [name for name in names if is_image_name(Path(name)) or name.lower().endswith(_PARQUET)]
        else:
            return [address]
    except Exception as error:  # each storage raises different types
        raise AgegenError(f"cannot list {address}: {_explain(error)}") from error
    if not found:
        raise AgegenError(f"no images and no Parquet files at {address}")
    return [filesystem.unstrip_protocol(name) for name in found]


def open_filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address or a path, and the path within it.

    Raises:
        AgegenError: unknown protocol, or one that requires another package.
    """
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise AgegenError(f"{address}: {_explain(error)}") from error
    return filesystem, path


def read_address(address: str) -> bytes:
    """Download an image.

    Raises:
        DataError: it does not exist, cannot be reached, is too large, or is a video.
    """
    if is_video_name(address):
        raise DataError("only local videos can be read. Download it first.")
    try:
        filesystem, path = open_filesystem(address)
        with filesystem.open(path, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except AgegenError as error:
        raise DataError(str(error)) from error
    except Exception as error:
        raise DataError(_explain(error)) from error
    if len(content) > MAX_BYTES:
        raise DataError(f"larger than {MAX_BYTES / 1e9:.1f} GB")
    return content


def _expand(name: str, found: FoundInputs, outputs: Collection[str]) -> None:
    if is_remote(name):
        found.names.append(name)
    elif Path(name).is_dir():
        _walk(name, found, outputs)
    elif os.path.lexists(name) or not glob.has_magic(name):
        found.names.append(name)
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob accepts no absolute pattern
        below = [folder for folder in outputs if _is_inside(folder, os.path.realpath(find_folder(name)))]
        chosen = [
            match for match in matches if not any(_is_inside(os.path.realpath(match), folder) for folder in below)
        ]
        found.outputs += below if len(chosen) < len(matches) else []
        found.names += [match for match in chosen if not Path(match).is_dir()]


def _is_inside(path: str, folder: str) -> bool:
    return Path(folder) in Path(path).parents


def _walk(folder: str, found: FoundInputs, outputs: Collection[str]) -> None:
    """Add the images in a folder; a subfolder that cannot be listed is added itself, to become an unreadable row."""
    refused: list[str] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: refused.append(str(error.filename))):
        # Skip hidden files, the thumbnails of a NAS, and the metadata of a Mac.
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        if outputs:
            ours = [name for name in folders if os.path.realpath(os.path.join(root, name)) in outputs]  # noqa: PTH118
            found.outputs += [os.path.join(root, name) for name in ours]  # noqa: PTH118
            folders[:] = [name for name in folders if name not in ours]
        for name in sorted(name for name in names if not is_hidden(Path(name))):
            path = os.path.join(root, name)  # noqa: PTH118 - keeps "./photos" as it was given
            if is_image_name(Path(name)) or is_video_name(name) or (not Path(name).suffix and begins_as_image(path)):
                found.names.append(path)
            else:
                found.ignored[Path(name).suffix.lower() or "without extension"] += 1
        found.names += refused
        refused.clear()
    found.names += refused


def _read_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield data as it arrives, bypassing Python's buffer if the stream is a file.

    A thread waits here for more input: if it held the buffer's lock when the program ends, Python would abort.
    """
    try:
        handle = stream.fileno()
    except (OSError, ValueError):
        yield from iter(lambda: stream.read(_READ_BYTES), b"")
        return
    yield from iter(lambda: os.read(handle, _READ_BYTES), b"")


def _split_lines(rest: bytes, blocks: Iterator[bytes]) -> Iterator[str]:
    """Yield the paths of a list as they arrive, without empty lines."""
    while True:
        *lines, rest = rest.split(b"\n")
        yield from (os.fsdecode(line) for line in (line.rstrip(b"\r") for line in lines) if line)
        block = next(blocks, b"")
        if not block:
            break
        rest += block
    if last := rest.rstrip(b"\r\n"):
        yield os.fsdecode(last)


def _group_files(files: list[str], size: int) -> Iterator[Shard]:
    for start in range(0, len(files), size):
        part = tuple(files[start : start + size])
        yield Shard(len(part), part)


def _list_row_groups(table: str) -> Iterator[Shard]:
    with _open_table(table) as file:
        _choose_columns(table, file.schema_arrow)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if rows:
                yield Shard(rows, table=table, group=group, first=first)
            first += rows


def _read_row_group(shard: Shard) -> Iterator[ImageSource]:
    with _open_table(shard.table) as file:
        images, paths = _choose_columns(shard.table, file.schema_arrow)
        rows = file.read_row_group(shard.group, columns=[name for name in (images, paths) if name])
    if images is None:
        yield from (make_source(_resolve_path(name, shard.table)) for name in rows[paths].to_pylist())
        return
    numbered = [f"{shard.table}#{number}" for number in range(shard.first, shard.first + shard.count)]
    own = rows[paths].to_pylist() if paths else list_image_names(rows[images])
    names = numbered if own is None else [name or number for name, number in zip(own, numbered, strict=True)]
    for name, cell in zip(names, rows[images], strict=True):
        yield name, partial(extract_image, cell)


def _resolve_path(name: str, table: str) -> str:
    """Return a path in a table relative to the table's folder or address."""
    base = table.rpartition("/")[0]
    return name if not base or is_remote(name) or Path(name).is_absolute() else f"{base}/{name}"


def _open_table(table: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        filesystem, path = open_filesystem(table)
        return pq.ParquetFile(path, filesystem=filesystem)
    except (pa.ArrowException, OSError) as error:
        raise AgegenError(f"cannot read {table} as Parquet: {_explain(error)}") from error


def _choose_columns(table: str, schema: Any) -> tuple[str | None, str | None]:
    """Return the names of the columns with images and with paths; one of them may be missing."""
    lower = {name.lower(): name for name in reversed(schema.names)}
    images = find_image_column(schema)
    paths = next((lower[name] for name in PATH_COLUMNS if name in lower and lower[name] != images), None)
    if images is None and paths is None:
        columns = ", ".join(schema.names)
        raise AgegenError(f"no images in {table}: it requires a binary column or a column 'path'. It has: {columns}.")
    return images, paths


def _explain(error: Exception) -> str:
    return shorten(getattr(error, "strerror", None) or explain_failure(error))
