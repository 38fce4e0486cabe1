"""Crop the faces of labelled photos, aligned, and write a manifest of the crops."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.data.images import IMAGE_SUFFIXES, RGB
from agegen.data.loading import load_sources
from agegen.data.records import BOX_COLUMNS, Exclusion, FaceRecords
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.datatools.config import CropConfig
from agegen.datatools.convert import make_manifest
from agegen.errors import AgegenError, DataError
from agegen.faces.detection import add_cropper, choose_detector
from agegen.files import replace_atomically
from agegen.machine import count_cores

MANIFEST = "labels.csv"
# In the output folder until all crops are written: a line that identifies the data, then a line per photo.
PROGRESS = "crop-progress.jsonl"
# What follows the name of a photo that shows several labelled faces: the bounding box.
_BOX_SUFFIX = re.compile(r"#[-+.\de]+(?:,[-+.\de]+){3}$")
# JPEG quality: small files without visible artefacts.
_QUALITY = 95


@dataclass(frozen=True)
class CropResult:
    """The number of crops, their manifest, and the excluded rows with reasons; ``resumed``: rows finished earlier."""

    crops: int
    manifest: Path
    excluded: list[Exclusion]
    resumed: int = 0


def crop_data(config: CropConfig, on_progress: ProgressHook = ignore_progress) -> CropResult:
    """Crop the labelled faces of photos, aligned as the bundled weights expect it.

    Of each photo the largest face is cropped, or the faces in the bounding boxes that the labels have. Writes
    ``OUT/<path>.jpg`` (200×200) and ``OUT/labels.csv``, with the labels and all other columns, as ``agegen train --data
    OUT`` reads them. After an interruption, the same call continues with the next face.

    Raises:
        AgegenError: the data cannot be used, ``out`` has other content, or no face is found in any photo.
    """
    _check_out(config.out)
    records = add_cropper(load_sources(config.data, config.reading), choose_detector(config.detector))
    names = [str(path) for path in records.frame["path"]]
    places = name_crops(names)
    identity = _identify(records)
    reasons = _read_progress(config.out / PROGRESS, identity)
    resumed = len(reasons)
    _write_crops(records, config.out, places, (identity, reasons), on_progress)
    good = [not reason for reason in reasons]
    if not any(good):
        (config.out / PROGRESS).unlink()
        raise DataError(f"no face found in any image of {records.source}; the first: {reasons[0]}")
    lost = [Exclusion(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
    table = make_manifest(records.frame.drop(columns=["row", *BOX_COLUMNS], errors="ignore"), places)[good]
    with replace_atomically(config.out / MANIFEST) as temporary:
        table.to_csv(temporary, index=False)
    (config.out / PROGRESS).unlink()
    return CropResult(len(table), config.out / MANIFEST, [*records.excluded, *lost], resumed)


def name_crops(paths: list[str]) -> list[str]:
    """Return the path of each photo's crop in the output folder: ``a/b.jpg`` for ``a/b.png``, never outside the folder.

    Crops that would have the same name, also where case does not matter, are numbered: ``b.jpg``, ``b-2.jpg``.
    """
    taken: set[str] = set()
    names = []
    for row, path in enumerate(paths):
        photo = Path(_BOX_SUFFIX.sub("", path))
        parts = [part for part in photo.parts if part not in ("..", ".", photo.anchor)]
        inside = Path(*parts) if parts else Path(f"row-{row}")
        stem = inside.stem if inside.suffix.lower() in IMAGE_SUFFIXES else inside.name
        number = 1
        name = inside.with_name(f"{stem}.jpg").as_posix()
        while name.lower() in taken:
            number += 1
            name = inside.with_name(f"{stem}-{number}.jpg").as_posix()
        taken.add(name.lower())
        names.append(name)
    return names


def _check_out(out: Path) -> None:
    """Refuse a folder with other content than that of an interrupted call."""
    if not out.exists() or (out.is_dir() and ((out / PROGRESS).is_file() or not any(out.iterdir()))):
        return
    raise AgegenError(f"{out} is not an empty folder. Choose another one.")


def _identify(records: FaceRecords) -> str:
    """Return a text that is equal for equal labels and equal crops of equal photos, given by their paths."""
    content = f"{records.describe_crop()}\n{records.frame.to_csv(index=False)}"
    return hashlib.sha256(content.encode("utf-8", errors="surrogateescape")).hexdigest()


def _read_progress(path: Path, identity: str) -> list[str]:
    """Return why each finished row has no crop, "" if it has one.

    Raises:
        AgegenError: the progress is that of other data.
    """
    if not path.is_file():
        return []
    lines = list(_parse_lines(path.read_bytes()))
    if not lines:
        # Interrupted before the first line was complete: no crop was written.
        return []
    if lines[0] != identity:
        raise AgegenError(
            f"{path.parent} has unfinished crops of other labels or another detector. Choose another folder."
        )
    return lines[1:]


def _parse_lines(content: bytes) -> Iterator[Any]:
    """Yield the values of JSON Lines up to a line that a killed process has not completed."""
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n") or not isinstance(value, str):
            return
        yield value


def _write_crops(
    records: FaceRecords, out: Path, places: list[str], progress: tuple[str, list[str]], on_progress: ProgressHook
) -> None:
    """Write the missing crops; append to ``progress``, the identity and the reasons of finished rows.

    A row is recorded after its crop was written, so that after a crash only rows with a complete crop are skipped.
    """

    def crop(row: int) -> str:
        try:
            content = _encode_jpeg(records.decode(row))
        except DataError as error:
            return str(error)
        _write_crop(out / places[row], content)
        return ""

    identity, reasons = progress
    out.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(count_cores())
    try:
        with replace_atomically(out / PROGRESS) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (identity, *reasons)), encoding="ascii")
        with (out / PROGRESS).open("a", encoding="ascii") as file:
            for reason in pool.map(crop, range(len(reasons), len(records))):
                file.write(json.dumps(reason) + "\n")
                file.flush()
                reasons.append(reason)
                on_progress("cropping faces", len(reasons), len(records))
    except OSError as error:
        raise AgegenError(f"cannot write {error.filename or out / PROGRESS}: {error.strerror or error}") from error
    finally:
        # After an error or Ctrl-C, the crops that have not begun are left for the next call.
        pool.shutdown(cancel_futures=True)


def _write_crop(path: Path, content: bytes) -> None:
    """Write a crop, which is complete once its row is recorded; an incomplete one, on a full disk, is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _encode_jpeg(image: RGB) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
