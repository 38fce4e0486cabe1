"""Writing files whole: a temporary file in the same folder, then one rename."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agegen.errors import AgegenError

# A temporary file this old is nobody's any more: it was left by a process that was killed.
_ABANDONED_SECONDS = 24 * 3600.0
# Read once, as the module is imported: asking for it means setting it, for all threads at once.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place, on failure it goes.

    The temporary name keeps the suffix, because some writers choose their format by it.

    Raises:
        AgegenError: the folder can't be made or written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        with _explain_failure(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
            os.close(handle)
            temporary = Path(name)
        try:
            yield temporary
        except OSError as error:
            # Only what concerns the file to be written; the body may well fail at something else.
            if error.filename in (None, str(temporary), temporary):
                raise _describe(path, error) from error
            raise
        with _explain_failure(path):
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def _explain_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _describe(path, error) from error


def _describe(path: Path, error: OSError) -> AgegenError:
    return AgegenError(f"can't write {path}: {error.strerror or error}")


def _sweep(path: Path) -> None:
    """Delete what a killed process left of the same file."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the whole new one."""
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as :func:`write_bytes` does."""
    write_bytes(path, content.encode("utf-8", errors="surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON as :func:`write_bytes` does."""
    write_text(path, format_json(content))


def format_json(content: Any) -> str:
    """Return indented JSON with a final newline; NaN is refused, for it is no JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest_file(path: Path) -> str:
    """Return a file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_portrait() -> Path:
    """Return the path of the public-domain portrait of Grace Hopper that matplotlib brings.

    Raises:
        AgegenError: matplotlib isn't installed.
    """
    # Located, not imported: matplotlib wants a folder to write to before it tells where its data lies.
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (photo := Path(folder, "mpl-data", "sample_data", "grace_hopper.jpg")).is_file():
            return photo
    raise AgegenError("matplotlib, which brings the portrait, is not installed; give a photograph instead of --demo")
