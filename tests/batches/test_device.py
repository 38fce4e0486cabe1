"""Augmentation on the device that trains; here the CPU stands in for it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from agegen.batches import device as device_batches
from agegen.batches.device import (
    NUMBERS,
    DeviceBatches,
    DeviceEvalBatches,
    augment_images,
    draw_numbers,
    fits_on_device,
    read_view,
)
from agegen.batches.images import EvalBatches, LabelledPixels, Pixels, build_train_augmentation
from agegen.data.demo import draw_records
from agegen.data.images import resize_image
from agegen.distributed import DistContext
from agegen.errors import TrainingInterrupted
from agegen.train.config import TrainConfig
from agegen.train.train import train_run

CPU = torch.device("cpu")
# Numbers that let nothing happen.
STILL = torch.full((1, NUMBERS), 0.999)


@pytest.fixture(scope="module")
def data():
    records = draw_records(40)
    kept = np.stack([resize_image(records.decode(row), 64) for row in range(40)])
    return LabelledPixels(Pixels(records, 64, kept), records.labels)


def make_batches(data, dist=None, seed=3):
    return DeviceBatches(data, CPU, 12, seed, dist=dist or DistContext())


def test_nothing_happens_where_nothing_is_to(data):
    images = torch.from_numpy(np.stack([data.pixels[row] for row in range(3)])).permute(0, 3, 1, 2)
    view = read_view(STILL.expand(3, -1))
    assert (augment_images(images, view).int() - images.int()).abs().max() <= 1
    mirrored = view._replace(mirrored=torch.tensor([True, False, True]))
    flipped = augment_images(images, mirrored).int()
    assert (flipped[0] - images[0].flip(2).int()).abs().max() <= 1
    assert (flipped[1] - images[1].int()).abs().max() <= 1


def test_each_step_does_what_it_is_called():
    image = torch.zeros(1, 3, 60, 60, dtype=torch.uint8)
    image[0, 0, 20:40, 20:40] = 200
    view = read_view(STILL)

    def apply(**changes):
        return augment_images(image, view._replace(**changes))[0].float()

    turned = apply(turn=torch.tensor([90.0]))
    assert (turned[0, 25:35, 25:35] > 190).all()
    moved = apply(shift=torch.tensor([[0.25, 0.0]]))
    assert moved[0, 30, 45] > 190
    assert moved[0, 30, 22] < 10
    smaller = apply(scale=torch.tensor([0.5]))
    # What lies beyond the edge is a reflection.
    assert 0.2 < smaller[0, 15:45, 15:45].sum() / image[0, 0].float().sum() < 0.3
    assert apply(bias=torch.tensor([0.5])).min() >= 127
    assert apply(gain=torch.tensor([0.5]))[0].max() == 100
    grey = apply(grey=torch.tensor([True]))
    assert torch.equal(grey[0], grey[2])
    blurred = apply(blurred=torch.tensor([True]))
    assert 20 < blurred[0, 19, 30] < 150
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]]])
    hidden = apply(boxes=boxes)
    assert hidden[0, 30, 30] == 0
    assert hidden[0, 21, 21] == 200


def test_views_differ_about_as_far_as_those_of_the_loaders(data):
    """From the plain picture, on average over many views; both are drawn from the same ranges."""
    from agegen.backbone import InputSpec

    loaders = build_train_augmentation(InputSpec(size=64))
    rows = np.arange(40)
    images = torch.from_numpy(np.stack([data.pixels[row] for row in rows])).permute(0, 3, 1, 2)
    ours, theirs = [], []
    for epoch in range(10):
        views = augment_images(images, read_view(draw_numbers(0, epoch, 40)))
        ours.append((views.float() - images.float()).abs().mean())
        others = np.stack([loaders(data.pixels[row], (0, epoch, row)) for row in rows])
        theirs.append(np.abs(others.astype(float) - images.permute(0, 2, 3, 1).numpy()).mean())
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.15)


def test_the_same_seed_gives_the_same_views_in_any_team(data):
    whole = list(make_batches(data).iterate(2))
    assert len(whole) == len(make_batches(data)) == 3
    again = list(make_batches(data).iterate(2, start=1))
    assert all(torch.equal(one.views[0], other.views[0]) for one, other in zip(whole[1:], again, strict=True))
    parts = [list(make_batches(data, DistContext(rank, 5)).iterate(2)) for rank in range(5)]
    for number, batch in enumerate(whole):
        joined = torch.cat([part[number].views[0] for part in parts])
        assert torch.equal(joined, batch.views[0])
        assert all(part[number].size == 12 for part in parts)
    assert not torch.equal(whole[0].views[0], next(iter(make_batches(data, seed=4).iterate(2))).views[0])
    assert make_batches(data).measure_rate() > 0


def test_batches_are_the_same_however_many_are_made_together(data, monkeypatch):
    together = list(make_batches(data).iterate(1))
    monkeypatch.setattr(device_batches, "_PIXELS_AT_ONCE", 2 * 12 * 64 * 64)
    apart = list(make_batches(data).iterate(1))
    assert len(apart) == len(together) == 3
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.views[0], other.views[0])
        assert torch.equal(one.targets.low, other.targets.low)


def read_epochs(run):
    with (Path(run) / "epochs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_trains_and_goes_on(tmp_path, agegen, quick_training):
    words = ("--data", "demo", "--augment", "device", "--batch-size", "32", "--precision", "fp32")
    done = agegen("train", "--model", "scratch", *words, "--epochs", "2", "--out", "whole")
    assert done.exit_code == 0, done.stderr
    assert "the pictures lie in the memory of the device that trains" in done.stderr
    losses = [float(row["train_loss"]) for row in read_epochs("whole")]
    assert losses[1] < losses[0]
    # Interrupted in the second epoch, and gone on with.
    config = TrainConfig(
        "scratch", ("demo",), tmp_path / "cut", epochs=2, batch_size=32, augment="device", precision="fp32"
    )
    stops = iter([False] * 15 + [True] * 100)
    with pytest.raises(TrainingInterrupted):
        for _ in train_run(config, should_stop=lambda: next(stops)):
            pass
    assert agegen("train", "--resume", "cut").exit_code == 0
    assert [row["val_loss"] for row in read_epochs("cut")] == [row["val_loss"] for row in read_epochs("whole")]
    refused = agegen("train", "--model", "scratch", "--data", "demo", "--augment", "gpu")
    assert "--augment is one of auto, loaders, device" in refused.stderr


def test_only_a_gpu_takes_it_by_itself():
    assert not fits_on_device(10, 64, CPU)


def test_evaluation_sees_what_it_sees_elsewhere(data):
    there, here = DeviceEvalBatches(data, CPU), EvalBatches(data, 16)
    assert len(there) == 1
    (whole,) = there.iterate()
    for number, views in enumerate(zip(*(batch.views for batch in here.iterate()), strict=True)):
        assert torch.equal(whole.views[number], torch.cat(views))
    assert list(there.iterate(0, 1, 2)) == []
    assert there.labels is data.labels
