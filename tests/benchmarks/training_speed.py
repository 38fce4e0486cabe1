"""Time training: images/s compared with Keras, and the minutes until the accuracy of the original project is reached.

    python tests/benchmarks/training_speed.py --data data/utkface --keras keras-env/bin/python [--rounds 5] [--count N]
    python tests/benchmarks/training_speed.py --data data/utkface --until-claim

The first form trains the backbone scratch on 4,000 faces (or N) for one epoch, alternating with
`tests/benchmarks/keras/train_scratch.py`, which requires a separate virtual environment (see there). The second form
runs `agegen train --model scratch --epochs 2` on all faces and prints when validation first reaches an MAE of at most
7.3 years and a gender accuracy of at least 85.8 %. Not a test: it asserts nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

from agegen.train.config import TrainConfig
from agegen.train.loop import EpochResult
from agegen.train.train import train_and_finish

CLAIM_MAE, CLAIM_ACCURACY = 7.3, 0.858


def train_agegen(folder: Path, out: Path) -> float:
    """Train one epoch and return its images/s."""
    events = train_and_finish(TrainConfig("scratch", (str(folder),), out, epochs=1))
    return next(event.images_per_second for event in events if isinstance(event, EpochResult))


def train_keras(python: Path, folder: Path, count: int) -> float:
    script = Path(__file__).parent / "keras" / "train_scratch.py"
    command = [str(python), str(script), "--data", str(folder), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"    {done.stdout.strip()}", flush=True)
    return float(json.loads(done.stdout)["images_per_second"])


def compare(data: Path, python: Path, rounds: int, count: int) -> None:
    paths = [path for path in sorted(data.glob("*.jpg")) if path.name.count("_") == 3]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "faces"
        folder.mkdir()
        # 80 % of the faces are used for training.
        for path in paths[:: max(1, len(paths) * 4 // (count * 5))]:
            (folder / path.name).symlink_to(path.resolve())
        taken: dict[str, list[float]] = {"agegen": [], "Keras": []}
        for turn in range(rounds):
            taken["agegen"].append(train_agegen(folder, Path(name) / f"run-{turn}"))
            taken["Keras"].append(train_keras(python, folder, count))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in medians.items():
        print(f"{name:<8} {value:6.0f} images/s, median of {taken[name]}")
    print(f"agegen / Keras: {medians['agegen'] / medians['Keras']:.2f}")


def time_claim(data: Path, epochs: int, batch_size: int | None, age_balance: float | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        config = TrainConfig("scratch", (str(data),), out, epochs, batch_size=batch_size, age_balance=age_balance)
        for event in train_and_finish(config):
            if isinstance(event, EpochResult):
                reached = event.val_mae <= CLAIM_MAE and event.val_accuracy >= CLAIM_ACCURACY
                print(
                    f"epoch {event.epoch}: {event.seconds / 60:.2f} minutes, {event.images_per_second:.0f} images/s, "
                    f"validation {event.val_mae:.2f} years, {event.val_accuracy:.1%}{': reached' if reached else ''}",
                    flush=True,
                )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--keras", type=Path, help="the Python of the environment with Keras")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--until-claim", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--age-balance", type=float)
    options = parser.parse_args()
    if options.until_claim:
        time_claim(options.data, options.epochs, options.batch_size, options.age_balance)
    if options.keras:
        compare(options.data, options.keras, options.rounds, options.count)


if __name__ == "__main__":
    main()
