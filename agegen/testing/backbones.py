"""The contract test for backbones: a base class for pytest, and one function that runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from torch import Tensor

from agegen.backbone import Backbone, find_contract_gap
from agegen.data.labels import AGE_CLASSES
from agegen.errors import AgegenError
from agegen.export.onnx import export_onnx
from agegen.model.checkpoint import describe_model, load_checkpoint, save_checkpoint
from agegen.model.loss import Targets, compute_loss
from agegen.model.network import AgeGenderModel, Outputs, expect_age
from agegen.model.plugins import GROUP, Plugin, build_backbone
from agegen.testing.promises import require

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
        require(gap is None, str(gap))
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
        require(found == wanted, f"features on the meta device are {found}, not {wanted}")

    def test_its_outputs_have_their_shapes(self) -> None:
        """Features and both branches have their shapes and ranges, and differ between pictures."""
        model = self._build()
        images = _draw_images(model.backbone)
        with torch.inference_mode():
            features = model.extract_features(images)
            outputs: Outputs = model(images)
        wanted = (_FACES, model.backbone.feature_dim)
        require(tuple(features.shape) == wanted, f"features are {tuple(features.shape)}, not {wanted}")
        require(torch.isfinite(features).all(), "features have values that are no numbers")
        require((features - features[0]).abs().max() > 0, "features are the same for every picture")
        require(outputs.age_logits.shape == (_FACES, AGE_CLASSES), "the age branch gives no distribution per face")
        require(outputs.gender_logit.shape == (_FACES,), "the gender branch gives no logit per face")
        ages = expect_age(outputs.age_logits.float().softmax(dim=1))
        require(((ages >= 0) & (ages <= AGE_CLASSES - 1)).all(), "estimated ages lie outside their range")

    def test_a_step_trains_what_is_to_train(self) -> None:
        """A step reaches every parameter that trains, and leaves the rest bit-identical, norms too."""
        model = self._build()
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.01)
        outputs = model.train()(_draw_images(model.backbone))
        ages = torch.tensor([1.0, 20.0, 45.0, 80.0])
        loss = compute_loss(outputs, Targets(ages, ages, torch.tensor([0.0, 1.0, 0.0, 1.0])))
        require(torch.isfinite(loss), "the loss is no number")
        loss.backward()  # type: ignore[no-untyped-call]
        without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        require(not (without and self.trains_every_parameter), f"no gradient reaches {', '.join(without[:3])}")
        optimizer.step()
        _check_what_moved(model.backbone, before)

    def test_save_and_load_give_the_same(self) -> None:
        """A checkpoint gives identical outputs."""
        model = self._build()
        images = _draw_images(model.backbone)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            path = self._save(model, Path(folder))
            info, loaded = load_checkpoint(path, self._build().backbone)
            require(info.heads == asdict(model.head_config), "the heads' options differ after save and load")
            for name, first, second in zip(Outputs._fields, model(images), loaded(images), strict=True):
                require(torch.equal(first, second), f"{name} differs after save and load")

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
        require(not open_ends, "a frozen backbone has parameters that would train")
        require(not moved, "a frozen backbone has changed")
        return
    require(moved, "training leaves the backbone as it is")
    parts = backbone.trained_parts
    if parts is not None:
        strays = [name for name in moved if not any(name == part or name.startswith(f"{part}.") for part in parts)]
        require(not strays, f"{strays[:1]} has changed, which is none of trained_parts")
