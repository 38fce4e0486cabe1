"""Crop the faces of labelled photos, aligned, and write a manifest of the crops."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agegen.data.images import RGB
from agegen.data.loading import load_sources
from agegen.data.records import BOX_COLUMNS, Exclusion, FaceRecords
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.datatools.config import CropConfig
from agegen.datatools.convert import make_manifest
from agegen.errors import AgegenError, DataError
from agegen.faces.detection import add_cropper, choose_detector
from agegen.files import replace_atomically, write_bytes
from agegen.machine import count_cores

MANIFEST = "labels.csv"
# JPEG quality: small files without visible artefacts.
_QUALITY = 95


@dataclass(frozen=True)
class CropResult:
    """The number of crops, their manifest, and the excluded rows with reasons."""

    crops: int
    manifest: Path
    excluded: list[Exclusion]


def crop_data(config: CropConfig, on_progress: ProgressHook = ignore_progress) -> CropResult:
    """Crop the labelled faces of photos, aligned as the bundled weights expect it.

    Of each photo the largest face is cropped, or the faces in the bounding boxes that the labels have.

    Writes ``OUT/<path>.jpg`` (200×200) and ``OUT/labels.csv``, with the labels and all other columns, as ``agegen
    train --data OUT`` reads them.

    Raises:
        AgegenError: the data cannot be used, ``out`` is not empty, or no face is found in any photo.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise AgegenError(f"{config.out} is not an empty folder. Choose another one.")
    records = add_cropper(load_sources(config.data, config.reading), choose_detector(config.detector))
    names = [str(path) for path in records.frame["path"]]
    places = [_place_crop(name, row) for row, name in enumerate(names)]
    reasons = _write_crops(records, config.out, places, on_progress)
    good = [not reason for reason in reasons]
    if not any(good):
        raise DataError(f"no face found in any image of {records.source}; the first: {reasons[0]}")
    lost = [Exclusion(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
    table = make_manifest(records.frame.drop(columns=["row", *BOX_COLUMNS], errors="ignore"), places)[good]
    with replace_atomically(config.out / MANIFEST) as temporary:
        table.to_csv(temporary, index=False)
    return CropResult(len(table), config.out / MANIFEST, [*records.excluded, *lost])


def _write_crops(records: FaceRecords, out: Path, places: list[str], on_progress: ProgressHook) -> list[str]:
    """Write the crops; return for each row why it has none, or "" if it has one."""

    def crop(row: int) -> str:
        try:
            content = _encode_jpeg(records.decode(row))
        except DataError as error:
            return str(error)
        write_bytes(out / places[row], content)
        return ""

    reasons = []
    with ThreadPoolExecutor(count_cores()) as pool:
        for done, reason in enumerate(pool.map(crop, range(len(records))), start=1):
            reasons.append(reason)
            on_progress("cropping faces", done, len(records))
    return reasons


def _encode_jpeg(image: RGB) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _place_crop(path: str, row: int) -> str:
    """Return the path of a crop in the output folder: that of the photo, but never outside the folder."""
    parts = [part for part in Path(path).parts if part not in ("..", ".", Path(path).anchor)]
    inside = Path(*parts) if parts else Path(f"row-{row}")
    return inside.with_name(f"{inside.name}.jpg").as_posix()
