"""Datasets at a URL: Parquet files on the Hugging Face Hub (``hf://datasets/…``) or any storage of fsspec."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from agegen.errors import AgegenError, DataError
from agegen.files import require_cache_folder
from agegen.hub import explain_failure, is_offline, quiet_hub

# At least two letters: a single one is a Windows drive.
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^/]+))?/(.+)")
_SUFFIX = ".parquet"
# Addresses of files on this machine.
_LOCAL = ("file://", "local://")


def is_remote(data: str) -> bool:
    """Return whether a dataset is given as a URL rather than a path."""
    return _URL.match(data) is not None


def fetch_parquet(address: str) -> Path:
    """Return the path of the local copy of a Parquet file, or of a folder of files if the URL contains ``*``.

    Files from the Hub are kept in the Hugging Face cache, by revision. Other files are kept in the user's cache folder
    and downloaded again if their size or modification time has changed.

    Args:
        address: ``hf://datasets/OWNER/NAME[@REVISION]/PATH.parquet``, or any URL that fsspec supports (``s3://…``,
            ``gs://…``, ``file://…``); its storage may require another package.

    Raises:
        DataError: the file is not Parquet, does not exist, or cannot be downloaded.
        AgegenError: the user has no home directory for the cache.
    """
    if PurePosixPath(address).suffix.lower() != _SUFFIX:
        raise DataError(f"cannot read {address}: data at a URL must be Parquet files that contain the images")
    match = _HUB.fullmatch(address)
    if match is None and address.startswith("hf://"):
        raise DataError(
            f"invalid address of a dataset: {address}. Give hf://datasets/OWNER/NAME[@REVISION]/PATH.parquet."
        )
    if match is None and is_offline() and not address.lower().startswith(_LOCAL):
        raise DataError(f"{address} is an address, but --offline forbids network access. Give a local file.")
    try:
        files = _fetch_from_hub(*match.groups()) if match else _fetch_by_fsspec(address)
    except ImportError as error:
        raise DataError(f"{address} requires another package: {error}") from error
    except AgegenError:
        raise
    except Exception as error:  # each storage has its own errors
        raise DataError(
            f"{address} is not cached and cannot be downloaded ({explain_failure(error)}). "
            "Go online, or give a local file."
        ) from error
    if not files:
        raise DataError(f"no file at {address}")
    return _link_files(files)


def _fetch_from_hub(repository: str, revision: str | None, pattern: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    with quiet_hub():
        folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=[pattern])
    return sorted(path for path in Path(folder).glob(pattern) if path.is_file())


def _fetch_by_fsspec(address: str) -> list[Path]:
    import fsspec

    options = {"cache_storage": str(_get_cache_folder() / "files"), "check_files": True, "same_names": False}
    opened = fsspec.open_local(f"filecache::{address}", filecache=options)
    return [Path(name) for name in ([opened] if isinstance(opened, str) else opened)]


def _link_files(files: Sequence[Path]) -> Path:
    """Return a folder of links to exactly these files, or one link; their own folder may contain other files."""
    # The names of the files may be those of splits.
    names = [f"{number:05d}-{path.stem}{_SUFFIX}" for number, path in enumerate(files)]
    targets = [f"{name} {path.resolve()}" for name, path in zip(names, files, strict=True)]
    name = hashlib.sha256("\n".join(targets).encode()).hexdigest()[:16]
    folder = _get_cache_folder() / "sets" / name
    folder.mkdir(parents=True, exist_ok=True)
    for link, path in zip((folder / name for name in names), files, strict=True):
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    return folder if len(files) > 1 else folder / names[0]


def _get_cache_folder() -> Path:
    return require_cache_folder() / "remote"
