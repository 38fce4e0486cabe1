"""Contract tests for plugins: a pytest base class and a function for backbones, and a function for detectors."""

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

from agegen.backbone import Backbone, find_contract_gap, find_feature_gap
from agegen.data.images import RGB, decode_image
from agegen.data.labels import AGE_CLASSES
from agegen.engines.onnx_export import export_model
from agegen.errors import AgegenError
from agegen.faces.alignment import AlignmentTemplate, align_face, compute_target_landmarks
from agegen.faces.detection import check_declarations
from agegen.faces.geometry import DetectedFace, Detector
from agegen.faces.mtcnn import MTCNN
from agegen.files import find_portrait
from agegen.model.checkpoint import describe_model, load_checkpoint, save_checkpoint
from agegen.model.loss import Targets, compute_loss
from agegen.model.network import AgeGenderModel, Outputs, expect_age
from agegen.plugins import BACKBONE_GROUP, Plugin, build_backbone

__all__ = ["BackboneContract", "check_backbone", "check_detector"]

# Faces in a test batch: batch norm requires two, and four give each gender two ages.
_FACES = 4
# Position of the eyes and of the middle of the mouth in matplotlib's portrait of Grace Hopper (512 × 600), in pixels.
_PORTRAIT_EYES, _PORTRAIT_MOUTH = ((220, 187), (304, 185)), (262, 270)
# In pixels. Detectors differ by some pixels on where an eye is; the eyes are 84 pixels apart.
_TOLERANCE = 20
# As a fraction of the crop's side: the largest distance of a landmark in an aligned crop from its expected position.
_CROP_TOLERANCE = 0.08


def check(condition: object, message: str) -> None:
    """Raise an AssertionError if a condition is false; unlike ``assert``, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


class BackboneContract:
    """The contract of a backbone, one test per requirement; needs neither data nor network access.

    Subclass it in your test suite and set ``backbone``. The last three attributes disable a requirement; pytest then
    reports its test as skipped.

    Attributes:
        backbone: the class.
        argument: the argument that it is built with, if it takes one.
        options: further keyword arguments that it is built with, such as ``image_size``.
        pretrained: whether to build it with its pretrained weights, which must then be available.
        builds_on_meta: it can be built and run on the meta device, so that ``agegen models`` can count its parameters.
        trains_every_parameter: every trainable parameter receives a gradient from one batch.
        exports_to_onnx: it can be exported to ONNX, so that ``agegen predict`` does not need torch.
    """

    backbone: ClassVar[type[Backbone]]
    argument: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    pretrained: ClassVar[bool] = False
    builds_on_meta: ClassVar[bool] = True
    trains_every_parameter: ClassVar[bool] = True
    exports_to_onnx: ClassVar[bool] = True

    def test_declarations_are_complete(self) -> None:
        """All required attributes are set, on the class or on the instance."""
        gap = None if self.backbone.argument_name else find_contract_gap(self.backbone)
        check(gap is None, str(gap))
        self._build()

    def test_builds_on_the_meta_device(self) -> None:
        """The features have the declared shape on the meta device, where nothing is computed."""
        if not self.builds_on_meta:
            raise SkipTest("builds_on_meta is False")
        with torch.device("meta"):
            gap = find_feature_gap(self._build_backbone(pretrained=False))
        check(gap is None, f"on the meta device: {gap}")

    def test_outputs_have_the_right_shapes(self) -> None:
        """Features and outputs have the declared shapes, are in range, and differ between images."""
        model = self._build()
        gap = find_feature_gap(model.backbone)
        check(gap is None, str(gap))
        images = _draw_images(model.backbone)
        with torch.inference_mode():
            features = model.extract_features(images)
            outputs: Outputs = model(images)
        check(torch.isfinite(features).all(), "features have NaN or infinite values")
        check((features - features[0]).abs().max() > 0, "features are the same for every image")
        check(outputs.age_logits.shape == (_FACES, AGE_CLASSES), f"age_logits do not have the shape (N, {AGE_CLASSES})")
        check(outputs.gender_logit.shape == (_FACES,), "gender_logit does not have the shape (N,)")
        ages = expect_age(outputs.age_logits.float().softmax(dim=1))
        check(((ages >= 0) & (ages <= AGE_CLASSES - 1)).all(), f"estimated ages are outside 0–{AGE_CLASSES - 1}")

    def test_a_step_changes_only_trainable_parts(self) -> None:
        """One step changes the trainable parts and leaves all others bit-identical, including norm statistics."""
        model = self._build()
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.01)
        outputs = model.train()(_draw_images(model.backbone))
        ages = torch.tensor([1.0, 20.0, 45.0, 80.0])
        loss = compute_loss(outputs, Targets(ages, ages, torch.tensor([0.0, 1.0, 0.0, 1.0])))
        check(torch.isfinite(loss), "the loss is NaN or infinite")
        loss.backward()  # type: ignore[no-untyped-call]
        without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        check(not (without and self.trains_every_parameter), f"no gradient reaches {', '.join(without[:3])}")
        optimizer.step()
        _check_changes(model.backbone, before)

    def test_checkpoints_restore_the_model(self) -> None:
        """A model that is saved and loaded has bit-identical outputs."""
        model = self._build()
        images = _draw_images(model.backbone)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            path = self._save(model, Path(folder))
            info, loaded = load_checkpoint(path, self._build().backbone)
            check(info.heads == asdict(model.head_config), "the options of the heads differ after save and load")
            for name, first, second in zip(Outputs._fields, model(images), loaded(images), strict=True):
                check(torch.equal(first, second), f"{name} differs after save and load")

    def test_onnx_computes_the_same(self) -> None:
        """The exported ONNX model has the same outputs, within 0.05 years and a probability of 0.005."""
        if not self.exports_to_onnx:
            raise SkipTest("exports_to_onnx is False")
        model = self._build()
        with tempfile.TemporaryDirectory() as folder:
            path = self._save(model, Path(folder))
            try:
                export_model(*load_checkpoint(path, self._build().backbone), path, Path(folder, "model.onnx"))
            except AgegenError as error:
                raise AssertionError(str(error)) from error

    def _build(self) -> AgeGenderModel:
        return AgeGenderModel(self._build_backbone(pretrained=self.pretrained)).eval()

    def _build_backbone(self, *, pretrained: bool) -> Backbone:
        # Seeded, so that a frozen backbone with random weights has the same weights each time.
        torch.manual_seed(0)
        return build_backbone(self._make_plugin(), self.backbone, pretrained=pretrained, options=self.options)

    def _save(self, model: AgeGenderModel, folder: Path) -> Path:
        path = folder / "model.safetensors"
        save_checkpoint(path, model, describe_model(self._make_plugin(), model, {}))
        return path

    def _make_plugin(self) -> Plugin:
        """Return a plugin for the class, which need not be registered."""
        name = f"checked:{self.argument}" if self.argument else "checked"
        point = EntryPoint(name, f"{self.backbone.__module__}:{self.backbone.__qualname__}", BACKBONE_GROUP)
        return Plugin(name, self.backbone.__module__, "0", point, argument=self.argument)


def _draw_images(backbone: Backbone) -> Tensor:
    """Return random images (N, 3, size, size), uint8."""
    size = backbone.input_spec.size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (_FACES, 3, size, size), dtype=torch.uint8, generator=generator)


def _check_changes(backbone: Backbone, before: dict[str, Tensor]) -> None:
    """Check which tensors of a backbone differ from ``before`` after a training step."""
    after = backbone.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if backbone.frozen:
        trainable = any(parameter.requires_grad for parameter in backbone.parameters())
        check(not trainable, "a frozen backbone has trainable parameters")
        check(not changed, "a frozen backbone has changed")
        return
    check(changed, "training does not change the backbone")
    parts = backbone.trained_parts
    if parts is not None:
        others = [name for name in changed if not any(name == part or name.startswith(f"{part}.") for part in parts)]
        check(not others, f"{others[:1]} has changed, but is not in trained_parts")


def check_backbone(
    backbone: type[Backbone],
    *,
    pretrained: bool = False,
    argument: str = "",
    onnx: bool = False,
    **options: Any,
) -> None:
    """Check a backbone against its contract, like the tests of :class:`BackboneContract`.

    Args:
        backbone: the class.
        pretrained: whether to build it with its pretrained weights.
        argument: the argument that it is built with, if it takes one.
        onnx: whether to check the ONNX export too, which takes seconds.
        options: further keyword arguments that it is built with.

    Raises:
        AssertionError: the backbone violates its contract; the message names the first violation.
    """
    members = {"backbone": backbone, "pretrained": pretrained, "argument": argument, "options": options}
    contract = type("Checked", (BackboneContract,), members)()
    contract.test_declarations_are_complete()
    contract.test_builds_on_the_meta_device()
    contract.test_outputs_have_the_right_shapes()
    contract.test_a_step_changes_only_trainable_parts()
    contract.test_checkpoints_restore_the_model()
    if onnx:
        contract.test_onnx_computes_the_same()


def check_detector(factory: Callable[[], Detector]) -> None:
    """Check a detector against its contract; the only data needed is the portrait bundled with matplotlib.

    It checks the declarations; that uniform images of several sizes have no face; box, landmarks and score of the
    face in the portrait; the order of two faces; that the input is not modified; and that crops aligned by the
    landmarks have the face in the expected position.

    Args:
        factory: the object that the entry point names: a class, or a function that builds a detector.

    Raises:
        AssertionError: the detector violates its contract; the message names the first violation.
    """
    detector = factory()
    gap = check_declarations(detector)
    check(gap is None, str(gap))
    for shape in ((1, 1), (3, 400), (64, 64), (480, 640)):
        uniform = np.full((*shape, 3), 128, dtype=np.uint8)
        check(list(detector.detect(uniform)) == [], f"it detects a face in a uniform gray image of {shape}")
    photo = decode_image(find_portrait().read_bytes()).copy()
    before = photo.copy()
    found = detector.detect(photo)
    check(np.array_equal(photo, before), "it modifies the image")
    check(len(found) == 1, f"it detects {len(found)} faces in a portrait of one person")
    _check_face(found[0])
    _check_crop(detector, photo, found[0])
    two = detector.detect(np.concatenate([photo, photo], axis=1))
    check(len(two) == 2, f"it detects {len(two)} faces in an image of two")
    check(two[0].box[0] < two[1].box[0], "the faces are not ordered from left to right")


def _check_face(face: DetectedFace) -> None:
    left, top, right, bottom = face.box
    marks = np.asarray(face.landmarks, dtype=np.float64)
    check(marks.shape == (5, 2) and np.isfinite(marks).all(), "the landmarks are not five pairs of x and y")
    check(0 <= face.score <= 1, f"the score {face.score} is outside 0–1")
    check(left < right and top < bottom, "the box is not (left, top, right, bottom)")
    inside = (marks[:, 0] > left) & (marks[:, 0] < right) & (marks[:, 1] > top) & (marks[:, 1] < bottom)
    check(inside.all(), "landmarks are outside the box")
    expected = np.array([*_PORTRAIT_EYES, _PORTRAIT_MOUTH], dtype=np.float64)
    found = np.array([marks[0], marks[1], marks[3:].mean(axis=0)])
    distances = np.linalg.norm(found - expected, axis=1)
    check(
        (distances < _TOLERANCE).all(),
        "the landmarks are not left eye, right eye, nose, left and right mouth corner, as seen in the image",
    )


def _check_crop(detector: Detector, photo: RGB, face: DetectedFace) -> None:
    template = AlignmentTemplate()
    crop = align_face(photo, face, detector, template)
    check(detector.detect(crop), "it detects no face in an aligned crop")
    # Judge the crop by another detector: by the detector's own landmarks any `reference` would look right.
    judge = MTCNN()
    offsets = [
        other.landmarks / crop.shape[0] - compute_target_landmarks(judge, template) for other in judge.detect(crop)
    ]
    near = any((np.linalg.norm(offset, axis=1) < _CROP_TOLERANCE).all() for offset in offsets)
    check(near, "`reference` does not match its landmarks in UTKFace's crops: aligned crops have the face elsewhere")
