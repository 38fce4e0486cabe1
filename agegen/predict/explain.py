"""Show which regions of a face drive its estimates: occlusion maps and Grad-CAM, drawn over the aligned crop."""

from __future__ import annotations

import textwrap
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
# The ends of the colour scales of the age map and the gender map: what positive and negative values mean.
_ENDS = (("older", "younger"), ("more female", "more male"))
_UNITS = {"occlusion": ("years", "P(female)"), "grad-cam": ("relative", "relative")}
_GRAD_CAM_CAUTION = (
    "Grad-CAM maps are as coarse as the last convolution and often mark the background. Compare with --method "
    "occlusion before you draw conclusions."
)
# Of the ranks of two maps: above it, they share more than a quarter of their variance.
_MAX_CORRELATION = 0.5
# Diverging, distinct for the colour-blind: orange raises, purple lowers. It covers the face by 80 % at most.
_COLORS, _MAX_COVER = "PuOr_r", 0.8
# Fractions of the crop's side: a patch covers an eye or the mouth, and moves by a third of its side.
_PATCH, _STEP = 1 / 6, 1 / 18
# Occluded crops per inference batch; larger batches are not faster per crop.
_BATCH = 64


class Maps(NamedTuple):
    """The influence of each pixel (side, side) on the estimates ``age`` and ``gender``.

    Positive values make the estimate older or more female, negative ones younger or more male. Occlusion maps are in
    years and in P(female); Grad-CAM maps are relative, −1 to 1.
    """

    age: NDArray[np.float64]
    gender: NDArray[np.float64]


@dataclass(frozen=True)
class SanityCheck:
    """How much the maps depend on what the model has learnt: the model randomization test.

    ``age`` and ``gender`` are the rank correlations, −1 to 1, of the maps with those of the same network with shuffled
    weights. Where they are high, the maps show the image or the architecture rather than the model. Source: Adebayo et
    al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
    """

    age: float
    gender: float

    @property
    def passed(self) -> bool:
        """Whether the maps differ from those of the shuffled weights."""
        return max(abs(self.age), abs(self.gender)) < _MAX_CORRELATION

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return {"age": round(self.age, 4), "gender": round(self.gender, 4), "passed": self.passed}

    def describe(self) -> str:
        """Return the result as a sentence."""
        verdict = "the maps depend on what the model has learnt" if self.passed else "do not interpret these maps"
        return (
            "Sanity check: the rank correlation with the maps of shuffled weights is "
            f"{self.age:.2f} for age and {self.gender:.2f} for gender; {verdict}."
        )


@dataclass(frozen=True)
class Explanation:
    """A face's estimates, its aligned crop (200, 200, 3), and the maps of the regions that drive the estimates.

    ``sanity`` is None where the weights cannot be shuffled: without a checkpoint or without torch.
    """

    face: FacePrediction
    crop: RGB
    maps: Maps
    method: str = "occlusion"
    sanity: SanityCheck | None = None

    @property
    def remarks(self) -> list[str]:
        """What a reader of the maps must know: the result of the sanity check, and the method's weakness."""
        checked = "Sanity check: not done, as it requires a checkpoint and torch."
        if self.sanity is not None:
            checked = self.sanity.describe()
        return [checked, _GRAD_CAM_CAUTION] if self.method == "grad-cam" else [checked]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form: the estimates, the method, and the result of the sanity check."""
        face, sanity = self.face, self.sanity
        return {
            "file": face.file,
            "face": face.face,
            "age": face.age,
            "age_low": face.age_low,
            "age_high": face.age_high,
            "gender": face.gender,
            "p_female": face.p_female,
            "method": self.method,
            "sanity_check": None if sanity is None else sanity.to_json(),
            "remarks": self.remarks,
        }


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
    checkpoint = find_checkpoint(config.model, config.run, config.weights)
    if config.method == "occlusion":
        maps = compute_occlusion(engine, inputs)
    else:
        maps = compute_grad_cam(_load_model(checkpoint), inputs)
    explanation = Explanation(face, crop, maps, config.method, _check_sanity(checkpoint, inputs, maps, config.method))
    with replace_atomically(config.out) as temporary:
        save_figure(draw_explanation(explanation), temporary, dpi=130, format=kind)
    return explanation


def _check_sanity(checkpoint: Path, inputs: RGB, maps: Maps, method: str) -> SanityCheck | None:
    """Compare maps with those of shuffled weights; None without a checkpoint or torch."""
    if checkpoint.suffix != ".safetensors":
        return None
    try:
        from agegen.engines.torch_engine import TorchEngine
        from agegen.machine import choose_compute
    except ImportError:
        return None
    model = shuffle_weights(_load_model(checkpoint))
    if method == "grad-cam":
        return compare_maps(maps, compute_grad_cam(model, inputs))
    return compare_maps(maps, compute_occlusion(TorchEngine(model, choose_compute("auto", "fp32")), inputs))


def shuffle_weights(model: AgeGenderModel) -> AgeGenderModel:
    """Shuffle the values within each parameter of a model, in place: all is forgotten, but its scale stays."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model.eval()


def compare_maps(first: Maps, second: Maps) -> SanityCheck:
    """Return the rank correlations of two pairs of maps; 0 with a constant map."""
    from scipy.stats import spearmanr

    pairs = zip(first, second, strict=True)
    return SanityCheck(
        *(0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a.ravel(), b.ravel())[0]) for a, b in pairs)
    )


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
    """Return what each region of a crop (side, side, 3) adds to the estimates: what they lose if it is occluded.

    The side is the engine's input size. Each value is the mean change over all patches that cover the pixel.
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
        changes = plain.age - outputs.age, plain.p_female - outputs.p_female
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
    """Return Grad-CAM maps (side, side), −1 to 1 each, of a crop (side, side, 3) of the model's input size.

    They show the regions whose features in the last convolution raise or lower the age and P(female): unlike the
    paper's, they keep negative values. Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", ICCV 2017; computed by the package ``grad-cam``.

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
        maps = []
        for index in range(2):
            targets = [ClassifierOutputTarget(index)]
            cam(images.clone(), targets)
            # The package's own result has no negative values.
            recorded = cam.activations_and_grads
            activations, gradients = (part[0].detach().numpy() for part in (recorded.activations, recorded.gradients))
            signed = cam.get_cam_image(images, cam.target_layers[0], targets, activations, gradients)[0]
            maps.append(_scale_map(signed, crop.shape[0]))
    return Maps(*maps)


def _scale_map(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Return a map (side, side) whose largest magnitude is 1."""
    import cv2

    enlarged: NDArray[np.float64] = cv2.resize(values.astype(np.float64), (side, side))
    return enlarged / max(float(np.abs(enlarged).max()), 1e-12)


def _make_score_module(model: AgeGenderModel) -> nn.Module:
    """Return a module with the outputs to explain: the age in years, and the logit of P(female)."""
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
            return torch.stack([age, outputs.gender_logit], dim=1)

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


def draw_explanation(explanation: Explanation) -> Any:
    """Return a matplotlib figure of the crop, and of the maps over it; a model without ages has one map."""
    face, crop = explanation.face, explanation.crop
    kinds = [0, 1] if face.age is not None else [1]
    figure, axes = make_figure(1, 1 + len(kinds), 3.7 * (1 + len(kinds)), 4.2)
    ages = "" if face.age is None else f"{face.age:.0f} years ({face.age_low:.0f}–{face.age_high:.0f}), "
    names = [("age", "gender")[kind] for kind in kinds]
    titles = [f"{ages}P(female) {face.p_female:.2f}", *(f"{name}, by {explanation.method}" for name in names)]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(visible=False)
        axis.set_axis_off()
    axes[0][0].imshow(crop, extent=(0, 1, 1, 0))
    for axis, kind in zip(axes[0][1:], kinds, strict=True):
        _draw_map(figure, axis, crop, explanation.maps[kind], _ENDS[kind], _UNITS[explanation.method][kind])
    caption = "\n".join(line for text in explanation.remarks for line in textwrap.wrap(text, 55 * (1 + len(kinds))))
    figure.supxlabel(caption, fontsize=8.5)
    return figure


def _draw_map(figure: Any, axis: Any, crop: RGB, values: NDArray[np.float64], ends: tuple[str, str], unit: str) -> None:
    """Draw a signed map over the crop in grey; it covers the face where its values are large."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # A constant map has no largest magnitude.
    limit = float(np.abs(values).max()) or 1.0
    scale = ScalarMappable(Normalize(-limit, limit), _COLORS)
    overlay = scale.to_rgba(values)
    overlay[..., 3] = _MAX_COVER * np.sqrt(np.abs(values) / limit)
    grey = crop @ np.array([0.299, 0.587, 0.114])
    axis.imshow(grey, extent=(0, 1, 1, 0), cmap="gray", vmin=0, vmax=255)
    axis.imshow(overlay, extent=(0, 1, 1, 0), interpolation="bilinear")
    bar = figure.colorbar(scale, ax=axis, orientation="horizontal", fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    positive, negative = ends
    bar.set_label(f"← makes the estimate {negative} | {positive} → ({unit})", fontsize=9)
