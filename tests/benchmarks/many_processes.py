"""Compare the speed of one process and two, in training and in extracting the features of a frozen backbone.

    HF_HOME=../shared/hf HF_HUB_OFFLINE=1 python tests/benchmarks/many_processes.py --data data/utkface [--rounds 3]

The batch size is the same; one process uses all cores, two use half of them each. Alternates and prints medians.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FACES = {"scratch": 3000, "vgg16": 1500}
BATCH = 64


def train(count: int, model: str, data: Path, folder: Path) -> dict[str, float]:
    """Train one epoch in some processes; return images/s of training and, if there is one, of the extraction."""
    threads = max(1, (os.cpu_count() or 1) // count)
    launch = (
        ["-m"] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    )
    words = ["train", "--model", model, "--data", data, "--epochs", 1, "--batch-size", BATCH, "--workers", 0]
    run, cache = folder / "run", folder / "cache"
    command = [sys.executable, *launch, "agegen", *words, "--out", run, "--cache-dir", cache, "--age-balance", 0]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([str(word) for word in command], env=env, check=True, capture_output=True)
    with (run / "epochs.csv").open(encoding="utf-8") as file:
        rate = float(next(csv.DictReader(file))["images_per_second"])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    seconds = record["seconds"]["features"]
    views = record["settings"]["views"]
    return {"training": rate} | ({"features": record["data"]["faces"] * views / seconds} if seconds else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for model, faces in FACES.items():
        results: dict[tuple[int, str], list[float]] = {}
        with tempfile.TemporaryDirectory() as scratch:
            part = Path(scratch) / "part"
            part.mkdir()
            for path in sorted(options.data.glob("*.jpg"))[::3][:faces]:
                (part / path.name).symlink_to(path.resolve())
            for turn in range(options.rounds):
                for count in (1, 2):
                    folder = Path(scratch) / f"{turn}-{count}"
                    folder.mkdir()
                    for name, rate in train(count, model, part, folder).items():
                        results.setdefault((count, name), []).append(rate)
        for (count, name), rates in sorted(results.items(), key=lambda item: item[0][1]):
            shown = ", ".join(f"{rate:,.0f}" for rate in rates)
            print(
                f"{model:8} {name:9} {count} process(es): {statistics.median(rates):,.0f} images/s ({shown})",
                flush=True,
            )


if __name__ == "__main__":
    main()
