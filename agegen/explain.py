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

_TITLES = {
    "occlusion": ("years that the age changes", "change of P(female)"),
    "grad-cam": ("what raises the age", "what speaks for the gender"),
}
# Shares of the crop's side: a patch covers an eye or the mouth, and moves by a third of itself.
_PATCH, _STEP = 1 / 6, 1 / 18
# Covered crops estimated at once: as fast per crop as a larger batch.
_BATCH = 64


class Maps(NamedTuple):
    """The influence of each pixel (side, side): in years for ``age``, in P(female) for ``gender``."""

    age: NDArray[np.float64]
    gender: NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """A face's estimates, its crop (200, 200, 3), and the maps of what they rest on."""

    face: FacePrediction
    crop: RGB
    maps: Maps


def explain_face(config: ExplainConfig) -> Explanation:
    """Explain the estimates of one face, and write the figure.

    Raises:
        AgegenError: there is no such face, the image is unreadable, or the model cannot be used.
    """
    kind = find_format(config.out)
    estimator = Estimator.load(config.model, run=config.run, weights=config.weights, detector=config.detector)
    (photo, *_) = estimator.predict_many([config.picture], keep_crops=True)
    if photo.reason is not None:
        raise DataError(f"{config.picture}: {photo.reason}")
    if not 1 <= config.face <= len(photo.faces):
        raise AgegenError(
            f"{config.picture} has {len(photo.faces)} faces ({estimator.detector}), no number {config.face}"
        )
    crop = photo.crops[config.face - 1]
    maps = map_crop(config, estimator, resize_image(crop, estimator.model.engine.input_size))
    explanation = Explanation(photo.faces[config.face - 1], crop, maps)
    with replace_atomically(config.out) as temporary:
        save_figure(draw_explanation(explanation, config.method), temporary, dpi=130, format=kind)
    return explanation


def map_crop(config: ExplainConfig, estimator: Estimator, crop: RGB) -> Maps:
    """Return the maps of a crop by the chosen method."""
    if config.method == "occlusion":
        return map_occlusion(estimator.model.engine, crop)
    from agegen.model.checkpoint import load_checkpoint

    path = find_checkpoint(config.model, config.run, config.weights)
    if path.suffix != ".safetensors":
        raise AgegenError(f"--method grad-cam needs a checkpoint, not {path.name}; use --method occlusion")
    return map_gradients(load_checkpoint(path)[1], crop)


def map_occlusion(engine: Engine, crop: RGB) -> Maps:
    """Return how much the estimates change if each place of a crop (side, side, 3) is covered.

    The side is the engine's input size. Values are the mean absolute change over all patches that cover the place. A
    patch has the crop's mean colour, since black or white would add edges that no face has. Source: Zeiler & Fergus,
    "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    side = crop.shape[0]
    patch, step = max(1, round(side * _PATCH)), max(1, round(side * _STEP))
    places = list(_list_places(side, patch, step))
    plain = engine.run(crop[None])
    colour = crop.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    sums, counts = np.zeros((2, side, side)), np.zeros((side, side))
    for start in range(0, len(places), _BATCH):
        part = places[start : start + _BATCH]
        covered = np.repeat(crop[None], len(part), axis=0)
        for image, (top, left) in zip(covered, part, strict=True):
            image[top : top + patch, left : left + patch] = colour
        found = engine.run(covered)
        changes = np.abs(found.age - plain.age), np.abs(found.p_female - plain.p_female)
        for index, (top, left) in enumerate(part):
            window = slice(top, top + patch), slice(left, left + patch)
            counts[window] += 1
            for total, change in zip(sums, changes, strict=True):
                total[window] += change[index]
    return Maps(*(sums / np.maximum(counts, 1)))


def _list_places(side: int, patch: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield the top left corner of each patch; the last patches end at the edges."""
    starts = [*range(0, side - patch, step), side - patch]
    for top in starts:
        yield from ((top, left) for left in starts)


def map_gradients(model: AgeGenderModel, crop: RGB) -> Maps:
    """Return Grad-CAM maps (side, side), 0–1 each, of a crop (side, side, 3) of the model's input size.

    They show where the last convolution sees what raises the age, and what supports the predicted gender. Source:
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017;
    computed by the package ``grad-cam``.

    Raises:
        AgegenError: the package grad-cam is not installed, or the backbone has no convolution.
    """
    from agegen.model.network import stack_images

    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise AgegenError('--method grad-cam needs another package: pip install "agegen[explain]"') from error
    model.requires_grad_(True).eval()
    images = stack_images([crop]).float()
    with GradCAM(_make_score_module(model), [find_last_convolution(model.backbone)]) as cam:
        maps = [cam(images.clone(), [ClassifierOutputTarget(index)])[0] for index in range(2)]
    return Maps(*(np.asarray(found, dtype=np.float64) for found in maps))


def _make_score_module(model: AgeGenderModel) -> nn.Module:
    """Return a module whose outputs are explained: the age in years, and the logit of the predicted gender."""
    import torch

    from agegen.model.network import Outputs, expect_age

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            # Not the model's own forward, which takes no gradients through a frozen backbone.
            outputs: Outputs = model.heads(model.backbone((images.float() - model.mean) / model.std))
            age = expect_age(torch.softmax(outputs.age_logits.float(), dim=1))
            return torch.stack([age, outputs.gender_logit.abs()], dim=1)

    return Scores()


def find_last_convolution(backbone: nn.Module) -> Any:
    """Return the last convolution whose kernel is larger than one pixel.

    Raises:
        AgegenError: there is none.
    """
    from torch import nn

    found = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1]
    if not found:
        raise AgegenError("this backbone has no convolution for --method grad-cam; use --method occlusion")
    return found[-1]


def find_format(path: Path) -> str:
    """Return the image format of a file name.

    Raises:
        AgegenError: the format cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf", "jpg", "webp"):
        raise AgegenError(f"{path}: give a name that ends in .png, .svg, .pdf, .jpg or .webp")
    return kind


def draw_explanation(explanation: Explanation, method: str) -> Any:
    """Draw the face, and the two maps over it."""
    face, crop = explanation.face, explanation.crop
    figure, axes = make_figure(1, 3, 11, 3.6)
    estimates = f"{face.age:.0f} years ({face.age_low:.0f}–{face.age_high:.0f}), P(female) {face.p_female:.2f}"
    titles = (estimates, f"age: {_TITLES[method][0]}", f"gender: {_TITLES[method][1]}")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.imshow(crop, extent=(0, 1, 1, 0))
        axis.set_title(title, fontsize=10)
        axis.grid(visible=False)
        axis.set_axis_off()
    for axis, values in zip(axes[0][1:], explanation.maps, strict=True):
        shown = axis.imshow(values, extent=(0, 1, 1, 0), cmap="inferno", alpha=0.6, vmin=0, interpolation="bilinear")
        figure.colorbar(shown, ax=axis, fraction=0.046)
    return figure
