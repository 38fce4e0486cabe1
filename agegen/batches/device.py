"""Images in the memory of the training device, augmented there with kornia, so that no worker can be the bottleneck."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agegen.batches.batch import Batch, OrderedFaces, ShuffledFaces, make_targets
from agegen.batches.images import AUGMENTATION, AugmentationRanges, LabelledPixels
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.model.network import stack_images

# Share of the device's free memory that images may take; the rest is for the network and its activations.
_MEMORY_SHARE = 0.5
# Pixels that are augmented together: several batches of small images, because starting kornia's steps takes longer
# than computing them. In float32 they take 50 MB, and some intermediate results as much again.
_PIXELS_AT_ONCE = 1 << 22
# Twice the evaluation batch of a CPU, because a GPU waits for Python between batches. VGG16 at 224 px needs 3 GB.
_EVAL_BATCH_SIZE = 256
# The mean saturation of a face in HSV, 0–1.
_FACE_SATURATION = 0.4
_KORNIA_VERSION = (0, 9)
# Wide enough for the largest sigma.
_BLUR_KERNEL = 5
# Of kornia's parameters, those that are not drawn for each image.
_SHARED_PARAMETERS = ("order", "forward_input_shape")


class DeviceBatches(ShuffledFaces):
    """Augmented images for training, prepared on the device itself.

    The same seed, epoch and position in the epoch give the same augmentation in any process.
    """

    def __init__(
        self,
        data: LabelledPixels,
        device: torch.device,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Copy all images to the device; the other arguments are those of :class:`ShuffledFaces`.

        Raises:
            AgegenError: kornia is not installed, or too old.
        """
        if not has_kornia():
            raise AgegenError('--augment device requires kornia 0.9 or later: pip install "agegen[gpu]"')
        super().__init__(data.labels, batch_size, seed, weights, dist)
        self._images = load_images(data, device)
        self._augmentation = DeviceAugmentation()
        batch_pixels = self._batch_size * self._images.shape[-1] ** 2
        self._block = self._batch_size * max(1, _PIXELS_AT_ONCE // batch_pixels)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with batch ``start``; an incomplete last batch is dropped."""
        drawn = self.draw_batches(self.draw_epoch(epoch), start)
        # A block of batches is augmented together. Its parameters are drawn for all of its positions, whichever of
        # them this process uses: resuming and other numbers of processes then give the same images.
        for number, block in groupby(drawn, lambda batch: int(batch.positions[0]) // self._block):
            batches = list(block)
            rows = torch.from_numpy(np.concatenate([batch.rows for batch in batches]))
            places = torch.from_numpy(np.concatenate([batch.positions for batch in batches])) % self._block
            images = self._augmentation(
                self._images[rows.to(self._images.device)], (self._seed, epoch, number), self._block, places
            )
            parts = images.split([len(batch.rows) for batch in batches])  # type: ignore[no-untyped-call]
            for batch, part in zip(batches, parts, strict=True):
                yield Batch([part], make_targets(self.labels.pick(batch.rows)), batch.shared)


class DeviceEvalBatches(OrderedFaces):
    """Images on the device in the order of the data; the second view is the mirror image."""

    def __init__(self, data: LabelledPixels, device: torch.device, views: int) -> None:
        super().__init__(data.labels, views, _EVAL_BATCH_SIZE)
        self._images = load_images(data, device)

    def make_batch(self, first: int, stop: int) -> Batch:
        """Return the views of the images from ``first`` to ``stop`` (excluded)."""
        images = self._images[first:stop]
        return Batch([images, images.flip(3)][: self._views], make_targets(self.labels.pick(slice(first, stop))))


def load_images(data: LabelledPixels, device: torch.device) -> Tensor:
    """Return all images (N, 3, size, size), uint8, in the memory of a device."""
    return stack_images([data.pixels[row] for row in range(len(data.pixels))]).to(device)


def has_kornia() -> bool:
    """Return whether a version of kornia is installed that draws all parameters for all images of a batch."""
    try:
        installed = version("kornia").split(".")
    except PackageNotFoundError:
        return False
    return (int(installed[0]), int(installed[1])) >= _KORNIA_VERSION


def fits_on_device(count: int, size: int, device: torch.device) -> bool:
    """Return whether a GPU has room for ``count`` square RGB images; False for other devices."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return count * size * size * 3 < free * _MEMORY_SHARE


class DeviceAugmentation:
    """The augmentation of :func:`agegen.batches.images.build_train_augmentation` on the device of the images."""

    def __init__(self, ranges: AugmentationRanges = AUGMENTATION) -> None:
        from kornia.augmentation.container import ImageSequential

        self._steps = ImageSequential(*build_steps(ranges))

    def __call__(self, images: Tensor, seed: tuple[int, ...], count: int, places: Tensor) -> Tensor:
        """Return n augmented images (n, 3, size, size), uint8, on the device of the images.

        Args:
            images: (n, 3, size, size), uint8.
            seed: decides ``count`` augmentations.
            count: of augmentations to draw.
            places: which of them the n images get, (n,), on the CPU.
        """
        parameters = self._draw_parameters((count, *images.shape[1:]), seed)
        chosen = [type(item)(item.name, _pick_places(item.data, places)) for item in parameters]
        with torch.no_grad():
            augmented: Tensor = self._steps(images.float() / 255, params=chosen)
        return (augmented * 255).round().clamp(0, 255).to(torch.uint8)

    def _draw_parameters(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> list[Any]:
        """Return kornia's random parameters for a batch of this shape.

        kornia draws from torch's generator on the CPU. Its state is restored, as dropout draws from it, too.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
            parameters: list[Any] = self._steps.forward_parameters(torch.Size(shape))
            return parameters


def _pick_places(parameters: dict[str, Tensor], places: Tensor) -> dict[str, Tensor]:
    """Return the parameters of one step for some images of a batch."""
    return {name: value if name in _SHARED_PARAMETERS else value[places] for name, value in parameters.items()}


def build_steps(ranges: AugmentationRanges) -> list[Any]:
    """Return kornia's counterparts of albumentations' steps, with random parameters for each image.

    They differ from those on the CPU where kornia has no equal: an image is degraded by blur, sharpening or JPEG at
    its full size, each drawn on its own, the saturation is multiplied instead of shifted, and boxes are drawn by area
    and aspect ratio.
    """
    import kornia.augmentation as k

    zoom = (1 - ranges.scale, 1 + ranges.scale)
    saturation = ranges.saturation / 255 / _FACE_SATURATION
    low, high = ranges.hole_side
    # Each of the boxes is drawn independently, such that the probability of any box is p_holes.
    boxes = ranges.holes[1]
    p_box = 1 - (1 - ranges.p_holes) ** (1 / boxes)
    erase = [k.RandomErasing((low**2, high**2), (low / high, high / low), p=p_box) for _ in range(boxes)]
    low_quality, high_quality = map(float, ranges.quality)
    # Three steps, such that the probability of any is p_degraded.
    p_degraded = 1 - (1 - ranges.p_degraded) ** (1 / 3)
    return [
        k.RandomHorizontalFlip(p=ranges.p_mirror),
        k.RandomAffine(
            ranges.degrees, (ranges.shift, ranges.shift), zoom + zoom, padding_mode="reflection", p=ranges.p_affine
        ),
        # The order is contrast (1), brightness (0).
        k.ColorJiggle(brightness=ranges.brightness, contrast=ranges.contrast, order=(1, 0), p=ranges.p_light),
        # Hue (3), saturation (2), brightness (0) in the place of HSV's value.
        k.ColorJiggle(
            brightness=ranges.value / 255,
            saturation=saturation,
            hue=ranges.hue / 180,
            order=(3, 2, 0),
            p=ranges.p_colour,
        ),
        k.RandomGrayscale(p=ranges.p_grey),
        k.RandomGaussianBlur((_BLUR_KERNEL, _BLUR_KERNEL), ranges.sigma, p=p_degraded),
        k.RandomSharpness(ranges.sharpening, p=p_degraded),
        k.RandomJPEG((low_quality, high_quality), p=p_degraded),
        *erase,
    ]
