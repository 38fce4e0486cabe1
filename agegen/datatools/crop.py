"""Make aligned crops of a labelled set of photographs, with a manifest beside them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from agegen.data.labels import AGE_BOUNDS, format_labels
from agegen.data.loading import load_sources
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.records import Exclusion, FaceRecords
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.errors import AgegenError, DataError
from agegen.faces.detection import AUTO, LargestFaceCropper, choose_detector
from agegen.files import replace_atomically, write_bytes
from agegen.machine import count_cores

MANIFEST = "labels.csv"
# Lossy enough to keep a set of photographs small, not so much that a face shows it.
_QUALITY = 95


@dataclass(frozen=True)
class CropConfig:
    """Options of ``agegen data crop``."""

    data: tuple[str, ...]
    out: Path
    detector: str = AUTO
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class CropResult:
    """How many crops were made, the manifest of them, and which rows were left out, each with its reason."""

    crops: int
    manifest: Path
    excluded: list[Exclusion]


def crop_data(config: CropConfig, on_progress: ProgressHook = ignore_progress) -> CropResult:
    """Cut the largest face out of each photograph of a labelled set, aligned as the shipped models want it.

    Writes ``OUT/<path>.jpg`` (200×200) and ``OUT/labels.csv`` with the labels and all further columns, which
    ``agegen train --data OUT`` reads.

    Raises:
        AgegenError: the data can't be used, ``out`` is in use, or no face is found at all.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise AgegenError(f"{config.out} is not an empty folder; choose another")
    records = replace(
        load_sources(config.data, config.reading), cropper=LargestFaceCropper(choose_detector(config.detector))
    )
    places = [_place(str(path), row) for row, path in enumerate(records.frame["path"])]
    reasons = _cut_all(records, config.out, places, on_progress)
    good = [not reason for reason in reasons]
    if not any(good):
        raise DataError(f"no face found in any picture of {records.source}; the first: {reasons[0]}")
    names = records.frame["path"]
    lost = [Exclusion(str(name), reason) for name, reason in zip(names, reasons, strict=True) if reason]
    manifest = config.out / MANIFEST
    _write_manifest(manifest, records, places, good)
    return CropResult(sum(good), manifest, [*records.excluded, *lost])


def _cut_all(records: FaceRecords, out: Path, places: list[str], on_progress: ProgressHook) -> list[str]:
    """Write the crops; return per row why it has none, "" where it has one."""

    def cut(row: int) -> str:
        try:
            crop = records.decode(row)
        except DataError as error:
            return str(error)
        write_bytes(out / places[row], _encode(crop))
        return ""

    reasons = []
    with ThreadPoolExecutor(count_cores()) as pool:
        for done, reason in enumerate(pool.map(cut, range(len(records))), start=1):
            reasons.append(reason)
            on_progress("cropping faces", done, len(records))
    return reasons


def _encode(crop: object) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, "JPEG", quality=_QUALITY)  # type: ignore[arg-type]
    return stream.getvalue()


def _place(path: str, row: int) -> str:
    """Return where a crop lies under the output folder: as the photograph does, never outside."""
    parts = [part for part in Path(path).parts if part not in ("..", ".", Path(path).anchor)]
    inside = Path(*parts) if parts else Path(f"row-{row}")
    return inside.with_name(f"{inside.name}.jpg").as_posix()


def _write_manifest(path: Path, records: FaceRecords, places: list[str], good: list[bool]) -> None:
    frame = records.frame.assign(path=places)[good]
    ages, genders = format_labels(frame)
    kept = frame.drop(columns=["row", "age", "female", *AGE_BOUNDS], errors="ignore")
    table = pd.concat([kept[["path"]].assign(age=ages, gender=genders), kept.drop(columns="path")], axis=1)
    with replace_atomically(path) as temporary:
        table.to_csv(temporary, index=False)
