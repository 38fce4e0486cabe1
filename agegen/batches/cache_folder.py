"""The cache folder of the user: its path, and the features of frozen backbones that it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.files import require_cache_folder


@dataclass(frozen=True)
class CacheEntry:
    """The cached features of one backbone and dataset, as ``agegen cache`` lists them; ``size`` in bytes."""

    key: str
    path: Path
    identity: str
    faces: int
    views: int
    size: int


def choose_cache_dir(cache_dir: Path | None) -> Path:
    """Return the cache folder: ``cache_dir`` if given, otherwise the default of the user.

    Raises:
        AgegenError: the user has no home directory, and thus no default.
    """
    return require_cache_folder() if cache_dir is None else cache_dir


def list_cache(root: Path) -> list[CacheEntry]:
    """Return the entries of a cache folder."""
    return sorted(_read_entries(root), key=lambda entry: (entry.identity, entry.key))


def clear_cache(root: Path) -> int:
    """Delete all cached features and return the number of bytes freed."""
    freed = sum(entry.size for entry in list_cache(root))
    shutil.rmtree(root / "features", ignore_errors=True)
    return freed


def _read_entries(root: Path) -> Iterator[CacheEntry]:
    for path in (root / "features").glob("*/meta.json"):
        meta = _read_meta(path)
        files = list(path.parent.iterdir())
        yield CacheEntry(
            key=path.parent.name,
            path=path.parent,
            identity=meta.get("identity", "damaged"),
            faces=meta.get("faces", 0),
            views=sum(file.suffix == ".f16" for file in files),
            size=sum(file.stat().st_blocks * 512 for file in files),
        )


def _read_meta(path: Path) -> dict[str, Any]:
    """Return the content of ``meta.json``; empty if the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
