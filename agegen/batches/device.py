"""Pictures that lie in the memory of the device that trains, and are augmented there: no loader is a limit then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agegen.batches.batch import Batch, OrderedFaces, iter_batches, limit_batch_size, make_targets
from agegen.batches.images import LabelledPixels
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.model.network import stack_images

# Of the device's free memory: the rest is for the network, its gradients and a batch's activations.
_KEPT_SHARE = 0.5
# How many random numbers decide on a face's view; see :func:`read_view`.
NUMBERS = 25
# Batches that are augmented together: the steps of it take a GPU longer to begin than to do for a batch of small
# pictures. As floating-point numbers these take 0.2 GB.
_PIXELS_AT_ONCE = 1 << 24
# Twice what a CPU evaluates at once, where a GPU waits for Python between batches; 224 px of VGG16 take 3 GB so.
_EVAL_BATCH_SIZE = 256


class View(NamedTuple):
    """What is done to N pictures, (N,) each but for the boxes: see :func:`augment_images`.

    ``turn`` in degrees; ``shift`` (N, 2) in shares of the side; ``gain``, ``bias`` of the light; ``tint`` (N, 3) of
    hue in radians, saturation and value; ``boxes`` (N, 2, 4): centre and sides in shares of the side, sides of 0 for
    none.
    """

    mirrored: Tensor
    turn: Tensor
    shift: Tensor
    scale: Tensor
    gain: Tensor
    bias: Tensor
    tint: Tensor
    grey: Tensor
    blurred: Tensor
    coarse: Tensor
    boxes: Tensor


class DeviceBatches:
    """Augmented pictures in an order drawn anew for each epoch, without loader processes.

    The same seed, epoch and face give the same view, in whichever process.
    """

    workers = wanted_workers = 0

    def __init__(
        self,
        data: LabelledPixels,
        device: torch.device,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Bring all pictures to the device.

        Raises:
            AgegenError: kornia, which augments, isn't installed.
        """
        if not has_kornia():
            raise AgegenError('--augment device needs another package: pip install "agegen[gpu]"')
        self.labels = data.labels
        self._weights = np.ones(len(data.labels)) if weights is None else weights
        self._images = load_images(data, device)
        self._batch_size = limit_batch_size(batch_size, len(data.pixels))
        self._together = max(1, _PIXELS_AT_ONCE // (self._batch_size * self._images.shape[-1] ** 2))
        self._seed, self._dist = seed, dist

    def __len__(self) -> int:
        return len(self._images) // self._batch_size

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; a last one that isn't full is left out."""
        size, dist, device = self._batch_size, self._dist, self._images.device
        numbers = draw_numbers(self._seed, epoch, len(self._images)).to(device)
        dealt = iter_batches(self.labels, self._weights, size, self._seed, epoch, start, dist)
        while parts := list(islice(dealt, self._together)):
            rows = torch.from_numpy(np.concatenate([chosen for chosen, _ in parts])).to(device)
            augmented = augment_images(self._images[rows], read_view(numbers[rows]))
            views = augmented.split([len(chosen) for chosen, _ in parts])  # type: ignore[no-untyped-call]
            for (chosen, whole), view in zip(parts, views, strict=True):
                yield Batch([view], make_targets(self.labels.pick(chosen)), whole)

    def measure_rate(self) -> float:
        """Augment what is augmented together, twice, and return the rate of the second: the first wakes a device up."""
        rate = 0.0
        for _ in range(2):
            started = time.perf_counter()
            batches = list(islice(self.iterate(0), self._together))
            batches[-1].views[0].cpu()  # waits for the device
            rate = sum(batch.size for batch in batches) / (time.perf_counter() - started)
        return rate


class DeviceEvalBatches(OrderedFaces):
    """Plain and mirrored pictures in their own order, as :class:`agegen.batches.images.EvalBatches` has them."""

    def __init__(self, data: LabelledPixels, device: torch.device) -> None:
        super().__init__(data.labels, _EVAL_BATCH_SIZE)
        self._images = load_images(data, device)

    def make_batch(self, first: int, stop: int) -> Batch:
        """Return some of the faces."""
        images = self._images[first:stop]
        return Batch([images, images.flip(3)], make_targets(self.labels.pick(slice(first, stop))))


def load_images(data: LabelledPixels, device: torch.device) -> Tensor:
    """Return all pictures (N, 3, size, size), uint8, in a device's memory."""
    return stack_images([data.pixels[row] for row in range(len(data.pixels))]).to(device)


def has_kornia() -> bool:
    """Return whether kornia is installed."""
    return find_spec("kornia") is not None


def fits_on_device(count: int, size: int, device: torch.device) -> bool:
    """Return whether ``count`` square pictures take at most half of a GPU's free memory; False for what is no GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return count * size * size * 3 < free * _KEPT_SHARE


def draw_numbers(seed: int, epoch: int, faces: int) -> Tensor:
    """Return the random numbers (N, 25), 0–1, that decide on the views of all N faces in an epoch.

    From another stream than their order. Of all at once, though a process may augment a part of them: a generator for
    each face took longer than a GPU needs for its picture.
    """
    return torch.from_numpy(np.random.default_rng((seed, epoch, 1)).random((faces, NUMBERS), dtype=np.float32))


def read_view(numbers: Tensor) -> View:
    """Return what random numbers (N, 25) stand for; how often and how far as :mod:`agegen.batches.images` has it.

    Blur and coarseness stand in for the compression that has no counterpart here.
    """
    columns = iter(numbers.unbind(1))

    def happens(share: float) -> Tensor:
        return next(columns) < share

    def reaches(limit: float, where: Tensor) -> Tensor:
        return torch.where(where, (2 * next(columns) - 1) * limit, 0.0)

    mirrored, moved = happens(0.5), happens(0.9)
    turn = reaches(15, moved)
    shift = torch.stack([reaches(0.06, moved), reaches(0.06, moved)], dim=1)
    scale = 1 + reaches(0.15, moved)
    lit = happens(0.7)
    gain, bias = 1 + reaches(0.3, lit), reaches(0.3, lit)
    tinted = happens(0.4)
    # OpenCV's units: hues of 0–180, the others of 0–255.
    tint = torch.stack([reaches(np.pi * 8 / 90, tinted), reaches(30 / 255, tinted), reaches(15 / 255, tinted)], dim=1)
    grey, damage = happens(0.05), next(columns)
    hidden = happens(0.4)
    boxes = [_read_box(columns, hidden), _read_box(columns, hidden & happens(0.5))]
    return View(
        mirrored,
        turn,
        shift,
        scale,
        gain,
        bias,
        tint,
        grey,
        blurred=damage < 0.075,
        coarse=(damage >= 0.075) & (damage < 0.15),
        boxes=torch.stack(boxes, dim=1),
    )


def _read_box(columns: Iterator[Tensor], where: Tensor) -> Tensor:
    across, down = next(columns), next(columns)
    width, height = (torch.where(where, 0.1 + 0.2 * next(columns), 0.0) for _ in range(2))
    return torch.stack([across, down, width, height], dim=1)


def augment_images(images: Tensor, view: View) -> Tensor:
    """Return views (N, 3, size, size), uint8, of pictures of that form."""
    from kornia.geometry.transform import get_affine_matrix2d, warp_affine

    size = images.shape[-1]
    pictures = images.float() / 255
    pictures = torch.where(view.mirrored[:, None, None, None], pictures.flip(3), pictures)
    centre = torch.full_like(view.shift, (size - 1) / 2)
    scale = view.scale[:, None].expand(-1, 2)
    matrix = get_affine_matrix2d(view.shift * size, centre, scale, view.turn)
    pictures = warp_affine(pictures, matrix[:, :2], (size, size), padding_mode="reflection")
    pictures = (pictures * view.gain[:, None, None, None] + view.bias[:, None, None, None]).clamp(0, 1)
    pictures = _blur(_tint(pictures, view), view)
    return (_hide(pictures, view.boxes) * 255).round().to(torch.uint8)


def _tint(pictures: Tensor, view: View) -> Tensor:
    from kornia.color import hsv_to_rgb, rgb_to_grayscale, rgb_to_hsv

    hue, saturation, value = rgb_to_hsv(pictures).unbind(1)
    hue = (hue + view.tint[:, 0, None, None]) % (2 * np.pi)
    saturation = (saturation + view.tint[:, 1, None, None]).clamp(0, 1)
    value = (value + view.tint[:, 2, None, None]).clamp(0, 1)
    tinted = hsv_to_rgb(torch.stack([hue, saturation, value], dim=1))
    return torch.where(view.grey[:, None, None, None], rgb_to_grayscale(tinted).expand(-1, 3, -1, -1), tinted)


def _blur(pictures: Tensor, view: View) -> Tensor:
    from kornia.filters import gaussian_blur2d

    if view.blurred.any():
        pictures = pictures.clone()
        pictures[view.blurred] = gaussian_blur2d(pictures[view.blurred], 5, (1.1, 1.1))
    if view.coarse.any():
        pictures = pictures.clone()
        small = F.interpolate(pictures[view.coarse], scale_factor=0.6, mode="nearest")
        pictures[view.coarse] = F.interpolate(small, size=pictures.shape[-1], mode="nearest")
    return pictures


def _hide(pictures: Tensor, boxes: Tensor) -> Tensor:
    """Return pictures with black boxes (N, boxes, 4)."""
    size = pictures.shape[-1]
    places = (torch.arange(size, device=pictures.device) + 0.5) / size
    across, down, width, height = boxes[..., None].unbind(2)
    columns = (places - across).abs() < width / 2
    rows = (places - down).abs() < height / 2
    hidden = (rows[:, :, :, None] & columns[:, :, None, :]).any(dim=1)
    return pictures.masked_fill(hidden[:, None], 0.0)
