"""A folder of Parquet shards, as the Hugging Face Hub keeps data sets."""

from __future__ import annotations

from pathlib import Path

from agegen.data.images import list_pictures
from agegen.data.manifests import ReadOptions, load_manifest
from agegen.data.records import FaceRecords

NAME = "Parquet shards"


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces in all ``*.parquet`` of a folder without pictures of its own."""
    if not any(path.glob("*.parquet")) or list_pictures(path):
        return None
    return load_manifest(path, options)
