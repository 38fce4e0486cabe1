"""Show which regions of a face drive its estimates: occlusion maps and Grad-CAM, drawn over the aligned crop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, resize_image
from agegen.engines.engine import Engine
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically
from agegen.model.weights import find_checkpoint
from agegen.predict.config import ExplainConfig
from agegen.predict.estimator import Estimator
from agegen.predict.results import FacePrediction
from agegen.render.figures import make_figure, save_figure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from agegen.model.network import AgeGenderModel

FORMATS = ("png", "svg", "pdf", "jpg", "webp")
# Titles of the age map and the gender map.
_TITLES = {
    "occlusion": ("change of the age in years", "change of P(female)"),
    "grad-cam": ("regions that raise the age", "regions that support the gender"),
}
# Fractions of the crop's side: a patch covers an eye or the mouth, and moves by a third of its side.
_PATCH, _STEP = 1 / 6, 1 / 18
# Occluded crops per inference batch; larger batches are not faster per crop.
_BATCH = 64


class Maps(NamedTuple):
    """The influence of each pixel (side, side) on the estimates ``age`` and ``gender``, 0 or greater.

    Occlusion maps are in years and in P(female); Grad-CAM maps are relative, 0–1.
    """

    age: NDArray[np.float64]
    gender: NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """A face's estimates, its aligned crop (200, 200, 3), and the maps of the regions that drive the estimates."""

    face: FacePrediction
    crop: RGB
    maps: Maps


def explain_face(config: ExplainConfig) -> Explanation:
    """Explain the estimates of one face, and write the figure.

    Raises:
        AgegenError: the face does not exist, the image is unreadable, the model or an option is not usable, or the
            figure cannot be written.
    """
    kind = find_format(config.out)
    estimator = Estimator.load(config.model, run=config.run, weights=config.weights, detector=config.detector)
    face, crop = _find_face(estimator, config.picture, config.face)
    engine = estimator.model.engine
    inputs = resize_image(crop, engine.input_size)
    if config.method == "occlusion":
        maps = compute_occlusion(engine, inputs)
    else:
        maps = compute_grad_cam(_load_model(find_checkpoint(config.model, config.run, config.weights)), inputs)
    explanation = Explanation(face, crop, maps)
    with replace_atomically(config.out) as temporary:
        save_figure(draw_explanation(explanation, config.method), temporary, dpi=130, format=kind)
    return explanation


def find_format(path: Path) -> str:
    """Return the image format of a file name.

    Raises:
        AgegenError: the format is not supported.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise AgegenError(f"unsupported image format: {path}. Use {', '.join(f'.{name}' for name in FORMATS)}.")
    return kind


def _find_face(estimator: Estimator, image: str, number: int) -> tuple[FacePrediction, RGB]:
    """Return one face of an image file, and its aligned crop (200, 200, 3)."""
    (photo, *_) = estimator.predict_many([image], keep_crops=True)
    if photo.reason is not None:
        raise DataError(f"{image}: {photo.reason}")
    if not 1 <= number <= len(photo.faces):
        count = len(photo.faces)
        raise AgegenError(f"no face {number} in {image}: {count} found (detector {estimator.detector})")
    return photo.faces[number - 1], photo.crops[number - 1]


def _load_model(checkpoint: Path) -> AgeGenderModel:
    from agegen.model.checkpoint import load_checkpoint

    if checkpoint.suffix != ".safetensors":
        raise AgegenError(f"--method grad-cam needs a checkpoint, not {checkpoint.name}. Use --method occlusion.")
    return load_checkpoint(checkpoint)[1]


def compute_occlusion(engine: Engine, crop: RGB) -> Maps:
    """Return how much the estimates change if a region of a crop (side, side, 3) is occluded.

    The side is the engine's input size. Each value is the mean absolute change over all patches that cover the pixel.
    Patches have the mean colour of the crop, since black or white would add edges that no face has. Source: Zeiler &
    Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    side = crop.shape[0]
    patch, step = max(1, round(side * _PATCH)), max(1, round(side * _STEP))
    corners = list(_list_corners(side, patch, step))
    plain = engine.run(crop[None])
    colour = crop.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    sums, counts = np.zeros((2, side, side)), np.zeros((side, side))
    for start in range(0, len(corners), _BATCH):
        part = corners[start : start + _BATCH]
        occluded = np.repeat(crop[None], len(part), axis=0)
        for image, (top, left) in zip(occluded, part, strict=True):
            image[top : top + patch, left : left + patch] = colour
        outputs = engine.run(occluded)
        changes = np.abs(outputs.age - plain.age), np.abs(outputs.p_female - plain.p_female)
        for index, (top, left) in enumerate(part):
            window = slice(top, top + patch), slice(left, left + patch)
            counts[window] += 1
            for total, change in zip(sums, changes, strict=True):
                total[window] += change[index]
    return Maps(*(sums / np.maximum(counts, 1)))


def _list_corners(side: int, patch: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield the top left corner (top, left) of each patch; the last patches end at the edges."""
    starts = [*range(0, side - patch, step), side - patch]
    for top in starts:
        yield from ((top, left) for left in starts)


def compute_grad_cam(model: AgeGenderModel, crop: RGB) -> Maps:
    """Return Grad-CAM maps (side, side), 0–1 each, of a crop (side, side, 3) of the model's input size.

    They show the regions whose features in the last convolution raise the age and support the predicted gender.
    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV
    2017; computed by the package ``grad-cam``.

    Raises:
        AgegenError: the package grad-cam is not installed, or the backbone has no convolution.
    """
    from agegen.model.network import stack_images

    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise AgegenError('--method grad-cam needs another package. Run: pip install "agegen[explain]"') from error
    model.requires_grad_(True).eval()
    images = stack_images([crop]).float()
    with GradCAM(_make_score_module(model), [find_last_convolution(model.backbone)]) as cam:
        maps = [cam(images.clone(), [ClassifierOutputTarget(index)])[0] for index in range(2)]
    return Maps(*(np.asarray(values, dtype=np.float64) for values in maps))


def _make_score_module(model: AgeGenderModel) -> nn.Module:
    """Return a module with the outputs to explain: the age in years, and the logit of the predicted gender."""
    import torch

    from agegen.model.network import Outputs, expect_age

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            # The model's own forward() computes no gradients through a frozen backbone.
            outputs: Outputs = model.heads(model.backbone((images.float() - model.mean) / model.std))
            age = expect_age(torch.softmax(outputs.age_logits.float(), dim=1))
            return torch.stack([age, outputs.gender_logit.abs()], dim=1)

    return Scores()


def find_last_convolution(backbone: nn.Module) -> Any:
    """Return the last convolution with a kernel larger than one pixel.

    Raises:
        AgegenError: the backbone has none.
    """
    from torch import nn

    found = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1]
    if not found:
        raise AgegenError("--method grad-cam needs a convolution, which this backbone lacks. Use --method occlusion.")
    return found[-1]


def draw_explanation(explanation: Explanation, method: str) -> Any:
    """Return a matplotlib figure of the crop, and of the two maps over it."""
    face, crop = explanation.face, explanation.crop
    figure, axes = make_figure(1, 3, 11, 3.6)
    ages = "" if face.age is None else f"{face.age:.0f} years ({face.age_low:.0f}–{face.age_high:.0f}), "
    estimates = f"{ages}P(female) {face.p_female:.2f}"
    titles = (estimates, f"age: {_TITLES[method][0]}", f"gender: {_TITLES[method][1]}")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.imshow(crop, extent=(0, 1, 1, 0))
        axis.set_title(title, fontsize=10)
        axis.grid(visible=False)
        axis.set_axis_off()
    for axis, values in zip(axes[0][1:], explanation.maps, strict=True):
        overlay = axis.imshow(values, extent=(0, 1, 1, 0), cmap="inferno", alpha=0.6, vmin=0, interpolation="bilinear")
        figure.colorbar(overlay, ax=axis, fraction=0.046)
    return figure
