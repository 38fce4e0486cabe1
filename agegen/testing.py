"""The contract test for backbone authors: call :func:`check_backbone` in your own test suite."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from agegen.backbone import Backbone, find_contract_gap
from agegen.data.labels import AGE_CLASSES
from agegen.model.checkpoint import describe_model, fingerprint_tensors, load_checkpoint, save_checkpoint
from agegen.model.loss import Targets, compute_loss
from agegen.model.network import AgeGenderModel, Outputs, expect_age
from agegen.model.plugins import Plugin

# Batch norm needs two; four give each gender two ages.
_FACES = 4


def check_backbone(backbone: type[Backbone], *, pretrained: bool = False) -> None:
    """Check all that agegen expects of a backbone; needs neither data nor network unless ``pretrained``.

    Declarations; shapes on the meta device and for real; a checkpoint that gives identical outputs
    after save and load; a step of training that leaves a frozen backbone bit-identical and reaches
    every parameter of a trainable one.

    Raises:
        AssertionError: the first thing that is not as the contract says.
    """
    gap = find_contract_gap(backbone)
    _require(gap is None, str(gap))
    _check_meta(backbone)
    model = _build(backbone, pretrained)
    _check_outputs(model)
    _check_training(model)
    _check_round_trip(backbone, pretrained)


def _require(kept: object, promise: str) -> None:
    """Raise where a promise is broken; not with ``assert``, which ``python -O`` leaves out."""
    if not kept:
        raise AssertionError(promise)


def _build(backbone: type[Backbone], pretrained: bool) -> AgeGenderModel:
    # Seeded, so that a frozen backbone with random weights is the same each time.
    torch.manual_seed(0)
    return AgeGenderModel(backbone(pretrained=pretrained)).eval()


def _draw_images(backbone: type[Backbone]) -> Tensor:
    size = backbone.input_spec.size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (_FACES, 3, size, size), dtype=torch.uint8, generator=generator)


def _check_meta(backbone: type[Backbone]) -> None:
    size = backbone.input_spec.size
    with torch.device("meta"):
        features = backbone(pretrained=False).eval()(torch.empty(2, 3, size, size))
    wanted = (2, backbone.feature_dim)
    _require(tuple(features.shape) == wanted, f"features on the meta device are {tuple(features.shape)}, not {wanted}")


def _check_outputs(model: AgeGenderModel) -> None:
    images = _draw_images(type(model.backbone))
    with torch.inference_mode():
        features = model.extract_features(images)
        outputs: Outputs = model(images)
    wanted = (_FACES, model.backbone.feature_dim)
    _require(tuple(features.shape) == wanted, f"features are {tuple(features.shape)}, not {wanted}")
    _require(torch.isfinite(features).all(), "features have values that are no numbers")
    _require(features.std() > 0, "features are the same for every picture")
    _require(outputs.age_logits.shape == (_FACES, AGE_CLASSES), "the age branch gives no distribution per face")
    _require(outputs.gender_logit.shape == (_FACES,), "the gender branch gives no logit per face")
    ages = expect_age(outputs.age_logits.float().softmax(dim=1))
    _require(((ages >= 0) & (ages <= AGE_CLASSES - 1)).all(), "estimated ages lie outside their range")


def _check_training(model: AgeGenderModel) -> None:
    before = fingerprint_tensors(model.backbone)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.01)
    outputs = model.train()(_draw_images(type(model.backbone)))
    ages = torch.tensor([1.0, 20.0, 45.0, 80.0])
    loss = compute_loss(outputs, Targets(ages, ages, torch.tensor([0.0, 1.0, 0.0, 1.0])))
    _require(torch.isfinite(loss), "the loss is no number")
    loss.backward()  # type: ignore[no-untyped-call]
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    _require(not without, f"no gradient reaches {', '.join(without[:3])}")
    optimizer.step()
    frozen = model.backbone.frozen
    open_ends = frozen and any(parameter.requires_grad for parameter in model.backbone.parameters())
    _require(not open_ends, "a frozen backbone has parameters that would train")
    changed = fingerprint_tensors(model.backbone) != before
    _require(changed != frozen, "a frozen backbone has changed" if frozen else "training leaves the backbone as it is")


def _check_round_trip(backbone: type[Backbone], pretrained: bool) -> None:
    model = _build(backbone, pretrained)
    images = _draw_images(backbone)
    plugin = Plugin("checked", backbone.__module__, "0", entry_point=None)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "model.safetensors"
        save_checkpoint(path, model, describe_model(plugin, model, {}))
        info, loaded = load_checkpoint(path, _build(backbone, pretrained).backbone)
        _require(info.heads == asdict(model.head_config), "the heads' options differ after save and load")
        for name, first, second in zip(Outputs._fields, model(images), loaded(images), strict=True):
            _require(torch.equal(first, second), f"{name} differs after save and load")
