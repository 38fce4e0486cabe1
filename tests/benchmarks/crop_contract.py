"""Measure where each detector finds the landmarks of a dataset's crops: the numbers in `Detector.reference`.

    HF_HOME=../shared/hf HF_HUB_OFFLINE=1 python tests/benchmarks/crop_contract.py --data ../shared/data/utkface

`--faces` random crops are each pasted upright into a 640×480 image at 80–400 pixels, as faces appear in photos; the
median landmarks are printed as fractions of the crop's side.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from composing import compose

from agegen.data.images import decode_image
from agegen.data.loading import load_records
from agegen.errors import AgegenError
from agegen.faces.detection import create_detector, list_detectors
from agegen.faces.geometry import apply_matrix, invert_matrix


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--faces", type=int, default=400)
    options = parser.parse_args()
    records = load_records(options.data)
    rows = np.random.default_rng(5).permutation(len(records))[: options.faces]
    for name in list_detectors():
        try:
            detector = create_detector(name)
        except AgegenError as error:
            print(f"{name}: {error}")
            continue
        rng, found = np.random.default_rng(3), []
        for row in rows:
            crop = decode_image(records.read(int(row)))
            image, pasted = compose(crop, rng, (80.0, 400.0), 0.0)
            to_crop = invert_matrix(pasted.matrix)
            inside = [apply_matrix(to_crop, face.landmarks) / crop.shape[0] for face in detector.detect(image)]
            found += [points for points in inside if np.abs(points.mean(axis=0) - 0.5).max() < 0.2][:1]
        points = np.array(found)
        print(f"{name}: found {len(found)} of {len(rows)}")
        print("  median", np.median(points, axis=0).round(4).tolist())
        print("  std   ", points.std(axis=0).round(4).tolist())


if __name__ == "__main__":
    main()
