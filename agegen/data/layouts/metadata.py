"""A table of labels beside the pictures: ``metadata.csv`` (Hugging Face's ImageFolder) or ``labels.csv``."""

from __future__ import annotations

from pathlib import Path

from agegen.data.manifests import ReadOptions, load_manifest
from agegen.data.records import FaceRecords

NAME = "a folder with metadata.csv"
_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "labels.csv", "labels.tsv", "labels.jsonl")


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces that the table names."""
    found = next((path / name for name in _NAMES if (path / name).is_file()), None)
    return None if found is None else load_manifest(found, options)
