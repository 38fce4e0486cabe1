"""Measure prediction on photos end to end: accuracy on synthetic photos, and photos per second.

    HF_HOME=../shared/hf HF_HUB_OFFLINE=1 python tests/benchmarks/photographs.py --data ../shared/data/utkface

Accuracy: each face of the test split (seed 0, as for the bundled weights) is pasted into a 640×480 image, rotated by
up to ±30°, scaled to 80–400 pixels and blurred; the image is saved as JPEG and passed to `Estimator.predict_many`. For
comparison, the same faces are estimated as the aligned crops that they are.
Speed: 1920×1280 images with 1 to 4 faces, also saved as JPEG.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from composing import compose, draw_background, paste_face

from agegen import Estimator
from agegen.data.images import RGB, decode_image
from agegen.data.loading import load_records
from agegen.data.scan import Scan, scan_images
from agegen.data.splits import split_scan
from agegen.errors import AgegenError

SIDES, MAX_DEGREES = (80.0, 400.0), 30.0


def select_test_faces(data: str, limit: int | None) -> Scan:
    """Return the first faces of the test split."""
    scan = scan_images(load_records(data))
    inside = split_scan(scan, 0)["split"].to_numpy() == "test"
    if limit is not None:
        inside[np.flatnonzero(inside)[limit:]] = False
    return scan.select(inside)


def read_crop(scan: Scan, row: int) -> RGB:
    return decode_image(scan.records.read(row))


def save(image: RGB, path: Path) -> Path:
    Image.fromarray(image).save(path, quality=92)
    return path


def print_accuracy(
    name: str, scan: Scan, rows: list[int], ages: list[float], p_female: list[float], extra: str
) -> None:
    frame = scan.records.frame.iloc[rows]
    mae = float(np.abs(np.array(ages) - frame["age"].to_numpy()).mean())
    accuracy = float(((np.array(p_female) >= 0.5) == frame["female"].to_numpy()).mean())
    print(f"{name}: MAE {mae:.2f} years, gender {accuracy:.1%}, {extra}", flush=True)


def measure_aligned(scan: Scan, paths: list[Path], load) -> None:
    faces = [photo.faces[0] for photo in load("none").predict_many(paths)]
    rows = list(range(len(paths)))
    print_accuracy(
        "aligned crops", scan, rows, [f.age for f in faces], [f.p_female for f in faces], f"{len(faces)} faces"
    )


def measure_composed(scan: Scan, folder: Path, detector: str, load) -> None:
    rng = np.random.default_rng(0)
    paths, centers = [], []
    for row in range(len(scan.records)):
        image, pasted = compose(read_crop(scan, row), rng, SIDES, MAX_DEGREES)
        paths.append(save(image, folder / f"{row}.jpg"))
        centers.append((pasted.matrix @ [100, 100, 1], pasted.side))
    rows, ages, p_female, false_positives = [], [], [], 0
    for row, photo in enumerate(load(detector).predict_many(paths)):
        center, side = centers[row]

        def compute_distance(face, center=center, side=side) -> float:
            middle = np.array([face.box[0] + face.box[2], face.box[1] + face.box[3]]) / 2
            return float(np.abs(middle - center).max() / side)

        near = [face for face in photo.faces if compute_distance(face) < 0.25]
        false_positives += len(photo.faces) - len(near[:1])
        if near:
            best = min(near, key=compute_distance)
            rows.append(row)
            ages.append(best.age)
            p_female.append(best.p_female)
    extra = f"{len(rows) / len(paths):.1%} of {len(paths)} faces found, {false_positives} false detections"
    print_accuracy(f"composed, {detector}", scan, rows, ages, p_female, extra)


def compose_photos(scan: Scan, folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(1)
    paths = []
    for number in range(count):
        image = draw_background(1920, 1280, rng)
        for place in rng.permutation(4)[: rng.integers(1, 5)]:
            side = rng.uniform(100, 450)
            center = (480 * place + 240 + rng.uniform(-15, 15), rng.uniform(300, 980))
            crop = read_crop(scan, int(rng.integers(len(scan.records))))
            paste_face(image, crop, center, side, rng.uniform(-20, 20))
        paths.append(save(image, folder / f"photo-{number}.jpg"))
    return paths


def measure_speed(paths: list[Path], detector: str, load) -> None:
    estimator = load(detector)
    list(estimator.predict_many(paths[:8]))
    started = time.monotonic()
    faces = sum(len(photo.faces) for photo in estimator.predict_many(paths))
    seconds = time.monotonic() - started
    print(f"{len(paths)} photos, {detector}: {len(paths) / seconds:.1f} photos/s, {faces} faces", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--faces", type=int, help="maximum number of faces of the test split")
    parser.add_argument("--photos", type=int, default=500)
    options = parser.parse_args()

    def load(detector: str) -> Estimator:
        return Estimator.load(options.model, run=options.run, detector=detector)

    scan = select_test_faces(options.data, options.faces)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crops = []
        for row in range(len(scan.records)):
            crops.append(folder / f"crop-{row}.jpg")
            crops[-1].write_bytes(scan.records.read(row))
        measure_aligned(scan, crops, load)
        photos = compose_photos(scan, folder, options.photos)
        for detector in ("mtcnn", "yunet"):
            try:
                measure_composed(scan, folder, detector, load)
                measure_speed(photos, detector, load)
            except AgegenError as error:
                print(f"{detector}: {error}")


if __name__ == "__main__":
    main()
