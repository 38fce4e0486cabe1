"""``agegen explain``: what the estimates of a face rest on, drawn beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.data.images import RGB, resize_image
from agegen.errors import AgegenError, DataError
from agegen.explain.occlusion import Maps, map_occlusion
from agegen.faces.detectors import AUTO
from agegen.files import replace_atomically
from agegen.model.weights import find_checkpoint
from agegen.predict.estimator import Estimator
from agegen.predict.results import FacePrediction
from agegen.render.plots import make_figure, save_figure

METHODS = ("occlusion", "grad-cam")
_TITLES = {
    "occlusion": ("years that the age changes", "change of P(female)"),
    "grad-cam": ("what raises the age", "what speaks for the gender"),
}


@dataclass(frozen=True)
class ExplainConfig:
    """Options of ``agegen explain``; ``face`` is its number in the photograph, from 1, from left to right."""

    picture: str
    out: Path
    model: str | None = None
    weights: str | None = None
    run: Path | None = None
    detector: str = AUTO
    face: int = 1
    method: str = "occlusion"


@dataclass(frozen=True)
class Explanation:
    """A face, what is said of it, its crop (200, 200, 3), and the maps of what that rests on."""

    face: FacePrediction
    crop: RGB
    maps: Maps


def explain_face(config: ExplainConfig) -> Explanation:
    """Explain the estimates of one face, and write the picture.

    Raises:
        AgegenError: no such face, an unreadable picture, or a model that can't be used.
    """
    if config.method not in METHODS:
        raise AgegenError(f"--method is one of {', '.join(METHODS)}")
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
    """Return the maps of a crop by the method asked for."""
    if config.method == "occlusion":
        return map_occlusion(estimator.model.engine, crop)
    from agegen.explain.grad_cam import map_gradients
    from agegen.model.checkpoint import load_checkpoint

    path = find_checkpoint(config.model, config.run, config.weights)
    if path.suffix != ".safetensors":
        raise AgegenError(f"--method grad-cam needs a checkpoint, not {path.name}; use --method occlusion")
    return map_gradients(load_checkpoint(path)[1], crop)


def find_format(path: Path) -> str:
    """Return the format that a picture's name asks for.

    Raises:
        AgegenError: it is none that can be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf", "jpg", "webp"):
        raise AgegenError(f"{path}: give a name that ends in .png, .svg, .pdf, .jpg or .webp")
    return kind


def draw_explanation(explanation: Explanation, method: str) -> Any:
    """Draw the face, and over it what age and gender rest on."""
    face, crop = explanation.face, explanation.crop
    figure, axes = make_figure(1, 3, 11, 3.6)
    said = f"{face.age:.0f} years ({face.age_low:.0f}–{face.age_high:.0f}), P(female) {face.p_female:.2f}"
    titles = (said, f"age: {_TITLES[method][0]}", f"gender: {_TITLES[method][1]}")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.imshow(crop, extent=(0, 1, 1, 0))
        axis.set_title(title, fontsize=10)
        axis.grid(visible=False)
        axis.set_axis_off()
    for axis, values in zip(axes[0][1:], explanation.maps, strict=True):
        shown = axis.imshow(values, extent=(0, 1, 1, 0), cmap="inferno", alpha=0.6, vmin=0, interpolation="bilinear")
        figure.colorbar(shown, ax=axis, fraction=0.046)
    return figure
