"""The contract test for backbones: a base class for pytest, and one function that runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor

from agegen.backbone import Backbone, find_contract_gap
from agegen.data.images import RGB, decode_image
from agegen.data.labels import AGE_CLASSES
from agegen.engines.onnx_export import export_onnx
from agegen.errors import AgegenError
from agegen.faces.alignment import AlignmentTemplate, align_face, compute_target_landmarks
from agegen.faces.detection import check_declarations
from agegen.faces.geometry import DetectedFace, Detector
from agegen.faces.mtcnn import MTCNN
from agegen.files import find_portrait
from agegen.model.checkpoint import describe_model, load_checkpoint, save_checkpoint
from agegen.model.loss import Targets, compute_loss
from agegen.model.network import AgeGenderModel, Outputs, expect_age
from agegen.plugins import GROUP, Plugin, build_backbone


def check(kept: object, promise: str) -> None:
    """Raise where a promise is broken; not with ``assert``, which ``python -O`` leaves out.

    Raises:
        AssertionError: it is broken.
    """
    if not kept:
        raise AssertionError(promise)


# Where matplotlib's portrait of Grace Hopper (512 × 600) has the eyes and the middle of the mouth, in pixels.
_PORTRAIT_EYES, _PORTRAIT_MOUTH = ((220, 187), (304, 185)), (262, 270)
# Pixels. Detectors disagree by some on where an eye is; the eyes are 84 apart.
_TOLERANCE = 20
# Of a crop's side: how far from its place a landmark may be found in the crop that was cut by it.
_CROP_TOLERANCE = 0.08


def check_detector(factory: Callable[[], Detector]) -> None:
    """Check all that agegen expects of a detector; needs no data but the portrait that matplotlib brings.

    Declarations; no face in plain pictures of any size; the portrait's face, its box, landmarks and score; faces from
    left to right; a picture that stays as it is; crops, cut by its landmarks, that have the face in its place.

    Args:
        factory: what the entry point names: a class, or a function that builds a detector.

    Raises:
        AssertionError: the first thing that is not as the contract says.
    """
    detector = factory()
    gap = check_declarations(detector)
    check(gap is None, str(gap))
    for shape in ((1, 1), (3, 400), (64, 64), (480, 640)):
        check(list(detector.detect(_fill(*shape))) == [], f"it finds a face in a grey picture of {shape}")
    photo = decode_image(find_portrait().read_bytes()).copy()
    before = photo.copy()
    found = detector.detect(photo)
    check(np.array_equal(photo, before), "it changes the picture")
    check(len(found) == 1, f"it finds {len(found)} faces in a portrait of one")
    _check_face(found[0])
    _check_crop(detector, photo, found[0])
    two = detector.detect(np.concatenate([photo, photo], axis=1))
    check(len(two) == 2, f"it finds {len(two)} faces in a picture of two")
    check(two[0].box[0] < two[1].box[0], "faces don't come from left to right")


def _fill(height: int, width: int) -> RGB:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def _check_face(face: DetectedFace) -> None:
    left, top, right, bottom = face.box
    marks = np.asarray(face.landmarks, dtype=np.float64)
    check(marks.shape == (5, 2) and np.isfinite(marks).all(), "landmarks are not five pairs of x and y")
    check(0 <= face.score <= 1, f"the score {face.score} lies outside of 0–1")
    check(left < right and top < bottom, "the box is not (left, top, right, bottom)")
    inside = (marks[:, 0] > left) & (marks[:, 0] < right) & (marks[:, 1] > top) & (marks[:, 1] < bottom)
    check(inside.all(), "landmarks lie outside of the box")
    wanted = np.array([*_PORTRAIT_EYES, _PORTRAIT_MOUTH], dtype=np.float64)
    places = np.array([marks[0], marks[1], marks[3:].mean(axis=0)])
    apart = np.linalg.norm(places - wanted, axis=1)
    check((apart < _TOLERANCE).all(), "landmarks are not the picture's left eye, right eye, nose, left and right mouth")


def _check_crop(detector: Detector, photo: RGB, face: DetectedFace) -> None:
    contract = AlignmentTemplate()
    crop = align_face(photo, face, detector, contract)
    check(detector.detect(crop), "it finds no face in an aligned crop")
    # Another detector's look at it: by its own landmarks, any `reference` would seem right.
    judge = MTCNN()
    places = [
        other.landmarks / crop.shape[0] - compute_target_landmarks(judge, contract) for other in judge.detect(crop)
    ]
    near = any((np.linalg.norm(place, axis=1) < _CROP_TOLERANCE).all() for place in places)
    check(near, "`reference` is not where it sees the landmarks of UTKFace's crops: its crops have the face elsewhere")


# Batch norm needs two; four give each gender two ages.
_FACES = 4


class BackboneContract:
    """What agegen expects of a backbone, one test for each promise; needs neither data nor network.

    Subclass it in your test suite and name your backbone. The attributes after the first four say what a backbone is
    excused from; excused promises are skipped, so that they stand in pytest's report.

    Attributes:
        backbone: the class.
        argument: that it is built with, where it takes one.
        options: further keywords that it is built with, such as ``image_size``.
        pretrained: whether it is built with its weights, which must then be at hand.
        builds_on_meta: it can be built and run on the meta device, so that ``agegen models`` counts its parameters.
        trains_every_parameter: each parameter that is to train gets a gradient from one batch.
        exports_to_onnx: it can be expressed in ONNX, so that ``agegen predict`` does without torch.
    """

    backbone: ClassVar[type[Backbone]]
    argument: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    pretrained: ClassVar[bool] = False
    builds_on_meta: ClassVar[bool] = True
    trains_every_parameter: ClassVar[bool] = True
    exports_to_onnx: ClassVar[bool] = True

    def test_it_declares_what_it_is(self) -> None:
        """Its declarations are whole, on the class or on what it builds."""
        named = self.backbone.argument_name
        gap = None if named else find_contract_gap(self.backbone)
        check(gap is None, str(gap))
        self._build()

    def test_it_builds_on_the_meta_device(self) -> None:
        """Its features have their shape where nothing is computed."""
        if not self.builds_on_meta:
            raise SkipTest("builds_on_meta is False")
        with torch.device("meta"):
            backbone = self._build_backbone(pretrained=False).eval()
            size = backbone.input_spec.size
            features = backbone(torch.empty(2, 3, size, size))
        wanted = (2, backbone.feature_dim)
        found = tuple(features.shape)
        check(found == wanted, f"features on the meta device are {found}, not {wanted}")

    def test_its_outputs_have_their_shapes(self) -> None:
        """Features and both branches have their shapes and ranges, and differ between pictures."""
        model = self._build()
        images = _draw_images(model.backbone)
        with torch.inference_mode():
            features = model.extract_features(images)
            outputs: Outputs = model(images)
        wanted = (_FACES, model.backbone.feature_dim)
        check(tuple(features.shape) == wanted, f"features are {tuple(features.shape)}, not {wanted}")
        check(torch.isfinite(features).all(), "features have values that are no numbers")
        check((features - features[0]).abs().max() > 0, "features are the same for every picture")
        check(outputs.age_logits.shape == (_FACES, AGE_CLASSES), "the age branch gives no distribution per face")
        check(outputs.gender_logit.shape == (_FACES,), "the gender branch gives no logit per face")
        ages = expect_age(outputs.age_logits.float().softmax(dim=1))
        check(((ages >= 0) & (ages <= AGE_CLASSES - 1)).all(), "estimated ages lie outside their range")

    def test_a_step_trains_what_is_to_train(self) -> None:
        """A step reaches every parameter that trains, and leaves the rest bit-identical, norms too."""
        model = self._build()
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.01)
        outputs = model.train()(_draw_images(model.backbone))
        ages = torch.tensor([1.0, 20.0, 45.0, 80.0])
        loss = compute_loss(outputs, Targets(ages, ages, torch.tensor([0.0, 1.0, 0.0, 1.0])))
        check(torch.isfinite(loss), "the loss is no number")
        loss.backward()  # type: ignore[no-untyped-call]
        without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        check(not (without and self.trains_every_parameter), f"no gradient reaches {', '.join(without[:3])}")
        optimizer.step()
        _check_what_moved(model.backbone, before)

    def test_save_and_load_give_the_same(self) -> None:
        """A checkpoint gives identical outputs."""
        model = self._build()
        images = _draw_images(model.backbone)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            path = self._save(model, Path(folder))
            info, loaded = load_checkpoint(path, self._build().backbone)
            check(info.heads == asdict(model.head_config), "the heads' options differ after save and load")
            for name, first, second in zip(Outputs._fields, model(images), loaded(images), strict=True):
                check(torch.equal(first, second), f"{name} differs after save and load")

    def test_onnx_gives_the_same(self) -> None:
        """Its ONNX form computes what it computes, within 0.05 years and 0.005 of probability."""
        if not self.exports_to_onnx:
            raise SkipTest("exports_to_onnx is False")
        model = self._build()
        with tempfile.TemporaryDirectory() as folder:
            path = self._save(model, Path(folder))
            try:
                export_onnx(path, Path(folder, "model.onnx"), self._build().backbone)
            except AgegenError as error:
                raise AssertionError(str(error)) from error

    def _build_backbone(self, *, pretrained: bool) -> Backbone:
        # Seeded, so that a frozen backbone with random weights is the same each time.
        torch.manual_seed(0)
        return build_backbone(self._name(), self.backbone, pretrained=pretrained, options=self.options)

    def _build(self) -> AgeGenderModel:
        return AgeGenderModel(self._build_backbone(pretrained=self.pretrained)).eval()

    def _name(self) -> Plugin:
        name = f"checked:{self.argument}" if self.argument else "checked"
        point = EntryPoint(name, f"{self.backbone.__module__}:{self.backbone.__qualname__}", GROUP)
        return Plugin(name, self.backbone.__module__, "0", point, argument=self.argument)

    def _save(self, model: AgeGenderModel, folder: Path) -> Path:
        path = folder / "model.safetensors"
        save_checkpoint(path, model, describe_model(self._name(), model, {}))
        return path


def check_backbone(
    backbone: type[Backbone],
    *,
    pretrained: bool = False,
    argument: str = "",
    onnx: bool = False,
    **options: Any,
) -> None:
    """Check all that agegen expects of a backbone, as :class:`BackboneContract` does.

    Args:
        backbone: the class.
        pretrained: whether it is built with its weights.
        argument: that it is built with, where it takes one.
        onnx: whether its ONNX form is checked too, which takes seconds.
        options: further keywords that it is built with.

    Raises:
        AssertionError: the first thing that is not as the contract says.
    """
    members = {"backbone": backbone, "pretrained": pretrained, "argument": argument, "options": options}
    contract = type("Checked", (BackboneContract,), members)()
    contract.test_it_declares_what_it_is()
    contract.test_it_builds_on_the_meta_device()
    contract.test_its_outputs_have_their_shapes()
    contract.test_a_step_trains_what_is_to_train()
    contract.test_save_and_load_give_the_same()
    if onnx:
        contract.test_onnx_gives_the_same()


def _draw_images(backbone: Backbone) -> Tensor:
    size = backbone.input_spec.size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (_FACES, 3, size, size), dtype=torch.uint8, generator=generator)


def _check_what_moved(backbone: Backbone, before: dict[str, Tensor]) -> None:
    after = backbone.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if backbone.frozen:
        open_ends = any(parameter.requires_grad for parameter in backbone.parameters())
        check(not open_ends, "a frozen backbone has parameters that would train")
        check(not moved, "a frozen backbone has changed")
        return
    check(moved, "training leaves the backbone as it is")
    parts = backbone.trained_parts
    if parts is not None:
        strays = [name for name in moved if not any(name == part or name.startswith(f"{part}.") for part in parts)]
        check(not strays, f"{strays[:1]} has changed, which is none of trained_parts")
