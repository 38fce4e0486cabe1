"""Pictures in Parquet files and at addresses, in shards: what ``agegen predict`` takes beside files and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agegen.data.images import MAX_BYTES, is_image_name
from agegen.data.manifests import PATH_COLUMNS
from agegen.data.parquet import choose_pictures, list_names, take_bytes
from agegen.data.remote import is_remote
from agegen.errors import AgegenError, DataError, shorten
from agegen.hub import explain_failure

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
    own = rows[path].to_pylist() if path else list_names(rows[picture])
    names = unnamed if own is None else [name or other for name, other in zip(own, unnamed, strict=True)]
    for name, cell in zip(names, rows[picture], strict=True):
        yield name, partial(take_bytes, cell)


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
    picture = choose_pictures(schema)
    path = next((lower[name] for name in PATH_COLUMNS if name in lower and lower[name] != picture), None)
    if picture is None and path is None:
        raise AgegenError(f"{table} has no pictures: no column of bytes, and none called path; it has {schema.names}")
    return picture, path


def _explain(error: Exception) -> str:
    return shorten(getattr(error, "strerror", None) or explain_failure(error))
