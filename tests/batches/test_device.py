"""Augmentation on the training device with kornia, computed here on the CPU."""

import csv
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from agegen.backbone import InputSpec
from agegen.batches import device as device_batches
from agegen.batches.device import DeviceAugmentation, DeviceBatches, DeviceEvalBatches, fits_on_device
from agegen.batches.images import (
    AUGMENTATION,
    AugmentationRanges,
    EvalBatches,
    LabelledPixels,
    Pixels,
    build_train_augmentation,
)
from agegen.data.demo import draw_records
from agegen.data.images import resize_image
from agegen.distributed import DistContext
from agegen.errors import AgegenError, TrainingInterrupted
from agegen.train.config import TrainConfig
from agegen.train.train import train_and_finish

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Views that the distributions are compared on; standard errors are then about a thirtieth of a standard deviation.
VIEWS = 1000
# An augmentation in which nothing happens.
NONE = {name: 0.0 for name in AugmentationRanges.__dataclass_fields__ if name.startswith("p_")}


@pytest.fixture(scope="module")
def data():
    records = draw_records(40)
    kept = np.stack([resize_image(records.decode(row), 64) for row in range(40)])
    return LabelledPixels(Pixels(records, 64, kept), records.labels)


def make_batches(data, weights=None, dist=None, seed=3):
    return DeviceBatches(data, CPU, 12, seed, weights, dist or DistContext())


def list_images(batches, epoch=2, start=0):
    return [batch.views[0] for batch in batches.iterate(epoch, start)]


def augment_both(images, ranges=AUGMENTATION):
    """Return augmented copies (N, size, size, 3) of images, by albumentations and by kornia."""
    spec = InputSpec(size=images.shape[1])
    albumentations = build_train_augmentation(spec, ranges=ranges)
    by_albumentations = np.stack([albumentations(image, (0, 0, row)) for row, image in enumerate(images)])
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    by_kornia = DeviceAugmentation(ranges)(tensor, (0, 0, 0), len(images), torch.arange(len(images)))
    return by_albumentations, by_kornia.permute(0, 2, 3, 1).numpy()


def compare(measure, views, mean=0.0, std=0.15):
    """The means of a measure differ by at most ``mean``, its standard deviations by the factor 1 ± ``std``."""
    first, second = (measure(each) for each in views)
    assert second.mean() == pytest.approx(first.mean(), abs=mean)
    assert second.std() == pytest.approx(first.std(), rel=std)


def measure_saturation(images):
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255 for image in images])


def measure_hue(images):
    """The hue of evenly coloured images, as a share of the circle, from −0.5 to 0.5."""
    hues = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[0, 0, 0] / 180.0 for image in images])
    return (hues + 0.5) % 1 - 0.5


def measure_angle(images):
    """The rotation in degrees of images of a horizontal bar."""
    angles = []
    y, x = (axis.ravel() for axis in np.indices(images.shape[1:3]))
    for image in images:
        _, vectors = np.linalg.eigh(np.cov(x, y, aweights=image[..., 0].ravel()))
        angles.append((np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) + 90) % 180 - 90)
    return np.array(angles)


def measure_centre(images):
    """The position (N, 2) of a bright spot, as shares of the side from the centre."""
    places = [np.argwhere(image[..., 0] > 128).mean(axis=0) for image in images]
    return (np.array(places) + 0.5) / images.shape[1] - 0.5


def measure_sides(images):
    """The width and height (N, 2) of a bright square, as shares of the image's side."""
    return (
        np.stack([[np.ptp(axis) + 1 for axis in np.nonzero(image[..., 0] > 128)] for image in images])
        / (images.shape[1])
    )


def draw_square(height, width, size=96):
    image = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    image[top : top + height, left : left + width] = 255
    return np.repeat(image[None], VIEWS, axis=0)


def test_both_pipelines_change_faces_alike(data):
    images = np.stack([data.pixels[row % 40] for row in range(VIEWS)])
    views = augment_both(images)
    compare(lambda each: each.mean(axis=(1, 2, 3)) / 255, views, mean=0.02)
    compare(lambda each: each.std(axis=(1, 2, 3)) / 255, views, mean=0.01)
    compare(measure_saturation, views, mean=0.03)
    compare(lambda each: np.abs(each.astype(float) - images).mean(axis=(1, 2, 3)) / 255, views, mean=0.015)


def test_both_pipelines_mirror_half_of_the_images():
    images = np.zeros((VIEWS, 32, 32, 3), np.uint8)
    images[:, :, :16] = 255
    for views in augment_both(images, AugmentationRanges(**NONE | {"p_mirror": AUGMENTATION.p_mirror})):
        assert (views[:, 0, 31, 0] == 255).mean() == pytest.approx(0.5, abs=0.05)


def test_both_pipelines_rotate_alike():
    only = AugmentationRanges(**NONE | {"p_affine": AUGMENTATION.p_affine, "shift": 0.0, "scale": 0.0})
    views = augment_both(draw_square(6, 60), only)
    compare(measure_angle, views, mean=1.0, std=0.1)
    for angles in map(measure_angle, views):
        assert np.abs(angles).max() == pytest.approx(AUGMENTATION.degrees, abs=1)
        assert (np.abs(angles) < 0.2).mean() == pytest.approx(1 - AUGMENTATION.p_affine, abs=0.05)


def test_both_pipelines_shift_alike():
    only = AugmentationRanges(**NONE | {"p_affine": 1.0, "degrees": 0.0, "scale": 0.0})
    views = augment_both(draw_square(6, 6), only)
    # albumentations rounds shifts down to whole pixels.
    compare(lambda each: measure_centre(each)[:, 0], views, mean=0.01, std=0.2)
    compare(lambda each: measure_centre(each)[:, 1], views, mean=0.01, std=0.2)
    for places in map(measure_centre, views):
        assert np.abs(places).max() == pytest.approx(AUGMENTATION.shift, abs=0.01)


def test_both_pipelines_scale_width_and_height_alike():
    only = AugmentationRanges(**NONE | {"p_affine": 1.0, "degrees": 0.0, "shift": 0.0})
    views = augment_both(draw_square(48, 48), only)
    compare(lambda each: measure_sides(each)[:, 0], views, mean=0.01, std=0.1)
    compare(lambda each: measure_sides(each)[:, 1], views, mean=0.01, std=0.1)
    for sides in map(measure_sides, views):
        assert abs(np.corrcoef(sides.T)[0, 1]) < 0.15


def test_both_pipelines_change_light_alike():
    images = np.full((VIEWS, 16, 16, 3), 100, np.uint8)
    images[:, :, 8:] = 150
    views = augment_both(images, AugmentationRanges(**NONE | {"p_light": AUGMENTATION.p_light}))
    compare(lambda each: each.mean(axis=(1, 2, 3)) / 255, views, mean=0.02, std=0.1)
    compare(lambda each: np.ptp(each.astype(int), axis=(1, 2, 3)) / 50, views, mean=0.02, std=0.1)


def test_both_pipelines_change_colours_alike():
    # Skin: its hue is 0.05 of the circle, its saturation that of the mean face.
    images = np.full((VIEWS, 8, 8, 3), (200, 145, 120), np.uint8)
    views = augment_both(images, AugmentationRanges(**NONE | {"p_colour": AUGMENTATION.p_colour}))
    compare(measure_hue, views, mean=0.004)
    compare(measure_saturation, views, mean=0.01)
    compare(lambda each: each.max(axis=(1, 2, 3)) / 255, views, mean=0.01)
    for each in augment_both(images, AugmentationRanges(**NONE | {"p_grey": AUGMENTATION.p_grey})):
        assert (np.ptp(each, axis=3).max(axis=(1, 2)) < 3).mean() == pytest.approx(AUGMENTATION.p_grey, abs=0.03)


def test_both_pipelines_degrade_as_many_images():
    noise = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).astype(np.uint8)
    images = np.repeat(noise, VIEWS, axis=0)
    for views in augment_both(
        images, AugmentationRanges(**NONE | {"p_degraded": AUGMENTATION.p_degraded, "p_step": 1.0})
    ):
        assert (views != images).any(axis=(1, 2, 3)).mean() == pytest.approx(AUGMENTATION.p_degraded, abs=0.04)


def test_both_pipelines_hide_as_much():
    images = np.full((VIEWS, 64, 64, 3), 255, np.uint8)
    views = augment_both(images, AugmentationRanges(**NONE | {"p_holes": AUGMENTATION.p_holes}))
    compare(lambda each: (each == 0).mean(axis=(1, 2, 3)), views, mean=0.004, std=0.3)
    for each in views:
        assert (each == 0).any(axis=(1, 2, 3)).mean() == pytest.approx(AUGMENTATION.p_holes, abs=0.05)


def test_a_face_drawn_twice_in_an_epoch_is_augmented_in_two_ways(data):
    batches = make_batches(data, np.array([10.0] + [30 / 39] * 39))
    rows = batches.draw_epoch(2)[:36]
    repeated = torch.cat(list_images(batches))[torch.from_numpy(np.flatnonzero(rows == 0))]
    assert len(repeated) > 5
    assert len({image.numpy().tobytes() for image in repeated}) == len(repeated)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_resumed_epochs_and_processes_give_the_same_images(data, monkeypatch, together):
    monkeypatch.setattr(device_batches, "_PIXELS_AT_ONCE", together * 12 * 64 * 64)
    whole = list_images(make_batches(data))
    assert len(whole) == len(make_batches(data)) == 3
    for start in (1, 2):
        rest = list_images(make_batches(data), start=start)
        assert all(torch.equal(one, other) for one, other in zip(whole[start:], rest, strict=True))
    parts = [list_images(make_batches(data, dist=DistContext(rank, 5))) for rank in range(5)]
    for number, images in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), images)
    assert not torch.equal(whole[0], list_images(make_batches(data), epoch=3)[0])
    assert not torch.equal(whole[0], list_images(make_batches(data, seed=4))[0])


def test_drawing_leaves_the_generator_of_dropout_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list_images(make_batches(data))
    assert torch.equal(torch.rand(3), expected)


def read_epochs(run):
    with (Path(run) / "epochs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_training_on_the_device_is_resumed(tmp_path, agegen, faces_folder, quick_training):
    words = ("--data", faces_folder, "--augment", "device", "--batch-size", "12", "--precision", "fp32")
    done = agegen("train", "--model", "scratch", *words, "--epochs", "2", "--out", "whole")
    assert done.exit_code == 0, done.stderr
    assert "images are stored and augmented in the memory of the training device" in done.stderr
    # Interrupted in the second epoch and resumed.
    config = TrainConfig(
        "scratch", (str(faces_folder),), tmp_path / "cut", epochs=2, batch_size=12, augment="device", precision="fp32"
    )
    stops = iter([False] * 6 + [True] * 100)
    with pytest.raises(TrainingInterrupted, match="epoch 2"):
        for _ in train_and_finish(config, should_stop=lambda: next(stops)):
            pass
    assert agegen("train", "--resume", "cut").exit_code == 0
    rows = read_epochs("whole")
    assert [row["val_loss"] for row in read_epochs("cut")] == [row["val_loss"] for row in rows]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


def raise_not_found(name):
    raise PackageNotFoundError(name)


@pytest.mark.parametrize("version", [raise_not_found, lambda name: "0.8.2"], ids=["missing", "old"])
def test_without_a_current_kornia_it_says_what_to_install(data, monkeypatch, version):
    monkeypatch.setattr(device_batches, "version", version)
    with pytest.raises(AgegenError, match=r'pip install "agegen\[gpu\]"'):
        make_batches(data)


def test_images_are_only_stored_on_a_gpu_by_default():
    assert not fits_on_device(10, 64, CPU)


def test_evaluation_on_the_device_reads_the_same_images(data):
    on_device, in_memory = DeviceEvalBatches(data, CPU, 2), EvalBatches(data, 2, 16)
    assert len(on_device) == 1
    (whole,) = on_device.iterate()
    for number, views in enumerate(zip(*(batch.views for batch in in_memory.iterate()), strict=True)):
        assert torch.equal(whole.views[number], torch.cat(views))
    assert list(on_device.iterate(0, 1, 2)) == []
    assert on_device.labels is data.labels
