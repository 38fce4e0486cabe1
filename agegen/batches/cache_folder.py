"""The folder for caches: where it is, what features lie in it, how to be rid of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheEntry:
    """One cached set of features, as ``agegen cache`` lists it; ``size`` in bytes."""

    key: str
    path: Path
    identity: str
    faces: int
    views: int
    size: int


def choose_cache_dir(cache_dir: Path | None) -> Path:
    """Return the folder for caches: the option, else the user's cache folder."""
    if cache_dir is not None:
        return cache_dir
    from platformdirs import user_cache_path

    return user_cache_path("agegen")


def list_cache(root: Path) -> list[CacheEntry]:
    """Return what lies in a cache folder."""
    return sorted(_describe_entries(root), key=lambda entry: (entry.identity, entry.key))


def clear_cache(root: Path) -> int:
    """Delete all cached features; return how many bytes that freed."""
    freed = sum(entry.size for entry in list_cache(root))
    shutil.rmtree(root / "features", ignore_errors=True)
    return freed


def _describe_entries(root: Path) -> Iterator[CacheEntry]:
    for path in (root / "features").glob("*/meta.json"):
        files = list(path.parent.iterdir())
        size = sum(file.stat().st_blocks * 512 for file in files)
        views = sum(file.suffix == ".f16" for file in files)
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            meta = None
        if not isinstance(meta, dict):
            meta = {}
        yield CacheEntry(
            path.parent.name, path.parent, meta.get("identity", "damaged"), meta.get("faces", 0), views, size
        )
