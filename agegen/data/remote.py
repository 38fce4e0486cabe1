"""Data sets at an address: Parquet on the Hugging Face Hub (``hf://datasets/…``), or wherever fsspec reaches."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from agegen.errors import DataError
from agegen.hub import explain_failure, quiet_hub

# One letter is a drive of Windows.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^/]+))?/(.+)")
_SUFFIX = ".parquet"


def is_remote(data: str) -> bool:
    """Return whether a data set is named by an address rather than a path."""
    return _ADDRESS.match(data) is not None


def fetch_parquet(address: str) -> Path:
    """Return the local copy of a Parquet file, or a folder of them where the address has ``*``.

    Copies stay in the Hugging Face cache, of one revision, or in the user's cache folder, which notices by size and
    time where a file has changed.

    Args:
        address: ``hf://datasets/OWNER/NAME[@REVISION]/PATH.parquet``, or any that fsspec knows (``s3://…``, ``gs://…``,
            ``file://…``) with the package that it wants.

    Raises:
        DataError: it isn't Parquet, isn't there, or can't be downloaded.
    """
    if PurePosixPath(address).suffix.lower() != _SUFFIX:
        raise DataError(f"can't read {address}: data at an address must be Parquet with the pictures inside")
    match = _HUB.fullmatch(address)
    if match is None and address.startswith("hf://"):
        raise DataError(f"{address} is no data set on the Hub: give hf://datasets/OWNER/NAME[@REVISION]/PATH.parquet")
    try:
        files = _fetch_from_hub(*match.groups()) if match else _fetch_by_fsspec(address)
    except ImportError as error:
        raise DataError(f"{address} needs another package: {error}") from error
    except Exception as error:  # each kind of storage has errors of its own
        raise DataError(
            f"{address} is not at hand and can't be downloaded ({explain_failure(error)}); go online, or give a file"
        ) from error
    if not files:
        raise DataError(f"no file at {address}")
    return _gather(files)


def _fetch_from_hub(repository: str, revision: str | None, pattern: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    with quiet_hub():
        folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=[pattern])
    return sorted(path for path in Path(folder).glob(pattern) if path.is_file())


def _fetch_by_fsspec(address: str) -> list[Path]:
    import fsspec

    options = {"cache_storage": str(_choose_folder() / "files"), "check_files": True, "same_names": False}
    opened = fsspec.open_local(f"filecache::{address}", filecache=options)
    return [Path(name) for name in ([opened] if isinstance(opened, str) else opened)]


def _gather(files: Sequence[Path]) -> Path:
    """Return a folder with links to just these shards, or one link: beside them may lie others, under other names."""
    name = hashlib.sha256("\n".join(str(path.resolve()) for path in files).encode()).hexdigest()[:16]
    folder = _choose_folder() / "sets" / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(files):
        link = folder / f"{number:05d}{_SUFFIX}"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    return folder if len(files) > 1 else folder / f"{0:05d}{_SUFFIX}"


def _choose_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("agegen") / "remote"
