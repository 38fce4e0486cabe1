"""Measure where each detector sees the landmarks of a data set's crops: the numbers in `Detector.reference`.

    HF_HOME=../shared/hf HF_HUB_OFFLINE=1 python tests/benchmarks/crop_contract.py --data ../shared/data/utkface

Each of `--faces` crops, drawn at random, is pasted upright into a picture of 640×480 at 80–400 pixels, as faces
come in photographs, and the median landmarks are given in shares of the crop's side.
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
            picture, pasted = compose(crop, rng, (80.0, 400.0), 0.0)
            back = invert_matrix(pasted.matrix)
            inside = [apply_matrix(back, face.landmarks) / crop.shape[0] for face in detector.detect(picture)]
            found += [points for points in inside if np.abs(points.mean(axis=0) - 0.5).max() < 0.2][:1]
        points = np.array(found)
        print(f"{name}: found {len(found)} of {len(rows)}")
        print("  median", np.median(points, axis=0).round(4).tolist())
        print("  std   ", points.std(axis=0).round(4).tolist())


if __name__ == "__main__":
    main()
