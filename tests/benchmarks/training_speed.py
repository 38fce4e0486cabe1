"""Time training: images/s compared with a plain PyTorch loop and with Keras; minutes until a known accuracy is reached.

    python tests/benchmarks/training_speed.py --data data/utkface [--model compact] [--keras keras-env/bin/python]
    python tests/benchmarks/training_speed.py --data data/utkface --until-claim

The first form trains for one epoch on 4,000 faces (or --count), alternating with a plain loop: the same network, loss
and augmentation in float32, with a DataLoader that opens each file with Pillow. With --keras it also alternates with
`tests/benchmarks/keras/train.py`, which requires a separate virtual environment (see there). The second form runs
`agegen train --model scratch --epochs 2` on all faces and prints when validation first reaches an MAE of at most 7.3
years and a gender accuracy of at least 85.8 %. Not a test: it asserts nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from agegen.batches.images import build_train_augmentation
from agegen.model.loss import Targets, compute_loss
from agegen.model.network import AgeGenderModel
from agegen.plugins import load_backbone
from agegen.train.config import TrainConfig
from agegen.train.loop import EpochResult
from agegen.train.train import train_and_finish

CLAIM_MAE, CLAIM_ACCURACY = 7.3, 0.858


def train_agegen(model: str, folder: Path, out: Path) -> float:
    """Train one epoch and return its images/s."""
    events = train_and_finish(TrainConfig(model, (str(folder),), out, epochs=1))
    return next(event.images_per_second for event in events if isinstance(event, EpochResult))


class PlainFaces(Dataset):
    """The faces of a folder with UTKFace names, opened and augmented at each access."""

    def __init__(self, paths: list[Path], spec) -> None:
        self.paths, self.spec = paths, spec
        self.augment = build_train_augmentation(spec)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        path = self.paths[index]
        age, gender = path.name.split("_")[:2]
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB").resize((self.spec.size, self.spec.size)))
        augmented = self.augment(image, (int(torch.randint(2**31, ()).item()),))
        pixels = torch.tensor(augmented).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.spec.mean, self.spec.std))
        return (pixels - mean) / std, float(age), float(gender)


def train_plain(model: str, folder: Path) -> float:
    """Train one epoch as in a tutorial and return its images/s."""
    _, backbone_class = load_backbone(model)
    backbone = backbone_class()
    # agegen's memory format is one of its accelerations.
    network = AgeGenderModel(backbone).to(memory_format=torch.contiguous_format).train()
    faces = PlainFaces(sorted(folder.glob("*.jpg")), backbone.input_spec)
    batch_size = backbone.defaults.batch_size
    loader = DataLoader(faces, batch_size, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    seen, started = 0, time.monotonic()
    for images, ages, genders in loader:
        outputs = network.heads(network.backbone(images))
        loss = compute_loss(outputs, Targets(ages.float(), ages.float(), genders.float()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(images)
    return seen / (time.monotonic() - started)


def train_keras(python: Path, model: str, folder: Path, count: int) -> float:
    """Train two epochs in Keras and return the images/s of the second one."""
    script = Path(__file__).parent / "keras" / "train.py"
    command = [str(python), str(script), "--model", model, "--data", str(folder), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"    {done.stdout.strip()}", flush=True)
    return float(json.loads(done.stdout)["images_per_second"])


def compare(model: str, data: Path, python: Path | None, rounds: int, count: int) -> None:
    """Print the images/s of all variants, which alternate in each round."""
    paths = [path for path in sorted(data.glob("*.jpg")) if path.name.count("_") == 3]
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "faces"
        folder.mkdir()
        # 80 % of the faces are used for training.
        for path in paths[:: max(1, len(paths) * 4 // (count * 5))]:
            (folder / path.name).symlink_to(path.resolve())
        for turn in range(rounds):
            taken.setdefault("agegen", []).append(train_agegen(model, folder, Path(name) / f"run-{turn}"))
            taken.setdefault("plain loop", []).append(train_plain(model, folder))
            if python is not None:
                taken.setdefault("Keras", []).append(train_keras(python, model, folder, count))
    for name, values in taken.items():
        ratio = statistics.median(mine / value for mine, value in zip(taken["agegen"], values, strict=True))
        rates = ", ".join(f"{value:.0f}" for value in values)
        print(f"{name:<10} {statistics.median(values):6.0f} images/s ({rates}); agegen is {ratio:.2f} times as fast")


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
    parser.add_argument("--model", default="compact", choices=["compact", "scratch"])
    parser.add_argument("--keras", type=Path, help="the Python of the environment with Keras")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--until-claim", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--age-balance", type=float)
    options = parser.parse_args()
    if options.until_claim:
        time_claim(options.data, options.epochs, options.batch_size, options.age_balance)
    else:
        compare(options.model, options.data, options.keras, options.rounds, options.count)


if __name__ == "__main__":
    main()
