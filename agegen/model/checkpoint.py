"""Checkpoints: a safetensors file with a model's trained tensors and the metadata that rebuilds the model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agegen.backbone import Backbone, HeadConfig
from agegen.errors import CheckpointError, PluginError, shorten
from agegen.files import write_bytes
from agegen.model.metadata import CheckpointInfo, format_info, open_safetensors, parse_info
from agegen.model.network import AgeGenderModel
from agegen.plugins import Plugin, build_backbone, load_backbone

# Begins the names of the tensors with the fingerprints of the faces that the training used.
_USED_FACES = "used_faces."


class UsedFaces(NamedTuple):
    """Fingerprints of the faces that a training used; see :func:`agegen.data.duplicates.compute_fingerprints`.

    ``train`` (n,) includes the training set of the weights that a fine-tuning started from; ``val`` (m,) chose the
    epoch and calibrated the model. Metrics on any other face are unbiased.
    """

    train: NDArray[np.uint64]
    val: NDArray[np.uint64]


def describe_model(plugin: Plugin, model: AgeGenderModel, training: dict[str, Any]) -> CheckpointInfo:
    """Return the metadata of a model for :func:`save_checkpoint`."""
    backbone = model.backbone
    base = None
    if backbone.frozen:
        base = {"identity": backbone.identity, "fingerprint": fingerprint_tensors(backbone)}
    spec = backbone.input_spec.to_json()
    heads, build = asdict(model.head_config), dict(backbone.build_options)
    package = plugin.distribution, plugin.version
    return CheckpointInfo(plugin.name, *package, heads, spec, base, training, build=build, views=model.views)


def save_checkpoint(
    path: Path, model: AgeGenderModel, info: CheckpointInfo, used_faces: UsedFaces | None = None
) -> None:
    """Write a model's tensors, its metadata and what it remembers of its faces."""
    write_bytes(path, make_checkpoint(model, info, used_faces))


def make_checkpoint(model: AgeGenderModel, info: CheckpointInfo, used_faces: UsedFaces | None = None) -> bytes:
    """Return the content of a checkpoint.

    Of a frozen backbone's model only the heads are stored, of a tensor that several modules share only the first name.
    """
    from safetensors.torch import save

    repeated = _list_repeated(model)
    stored = {name: tensor for name, tensor in _select_stored_tensors(model).items() if name not in repeated}
    # Copies, because the file format does not accept tensors that share memory, as views of others do.
    tensors = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in stored.items()}
    if used_faces is not None:
        for name, fingerprints in used_faces._asdict().items():
            tensors[_USED_FACES + name] = torch.from_numpy(np.unique(fingerprints).view(np.int64))
    content: bytes = save(tensors, metadata=format_info(info))
    return content


def read_used_faces(path: Path) -> UsedFaces | None:
    """Return the faces that a checkpoint's training used; None if the file does not know them.

    Raises:
        CheckpointError: the file is damaged or not a checkpoint.
    """
    with open_safetensors(path, "numpy") as file:
        if not any(name.startswith(_USED_FACES) for name in file.keys()):  # noqa: SIM118 - not a mapping
            return None
        tensors = [np.asarray(file.get_tensor(_USED_FACES + name)) for name in UsedFaces._fields]
    if any(tensor.dtype != np.int64 or tensor.ndim != 1 for tensor in tensors):
        raise CheckpointError(f"{path} is damaged: the fingerprints of its faces are not lists of 64-bit integers")
    return UsedFaces(*(tensor.view(np.uint64) for tensor in tensors))


def load_checkpoint(path: Path, backbone: Backbone | None = None) -> tuple[CheckpointInfo, AgeGenderModel]:
    """Rebuild the model of a checkpoint on the CPU, in evaluation mode.

    Args:
        path: the ``.safetensors`` file.
        backbone: a backbone to fill with the file's tensors; None builds it from its plugin.

    Raises:
        CheckpointError: the file is damaged; its plugin is not installed or has changed; its tensors do not fit; or
            the weights of the frozen backbone differ from those of the training.
    """
    info, tensors = _read_checkpoint(path)
    heads = HeadConfig(**info.heads)
    if backbone is None:
        _check_sizes(path, info, heads, tensors)
        backbone = _build_backbone(path, info, pretrained=info.base is not None)
    model = AgeGenderModel(backbone, heads)
    _check_base(path, info, model.backbone)
    _check_tensors(path, model, tensors)
    for name, tensor in tensors.items():
        # Not every type has this function: 8-bit floats lack it.
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{path}: the tensor {name} has NaN or infinite values")
    model.load_state_dict(tensors, strict=False)
    # Its calibration is that of the views that it was trained with, whatever the installed class declares.
    model.views = info.views
    return info, model.eval()


def _check_sizes(path: Path, info: CheckpointInfo, heads: HeadConfig, tensors: dict[str, Tensor]) -> None:
    """Check that the tensors fit, before memory is allocated for whatever sizes the metadata names."""
    try:
        with torch.device("meta"):
            model = AgeGenderModel(_build_backbone(path, info, pretrained=False), heads)
    except CheckpointError:
        raise
    except Exception:  # not every backbone can be built without memory: `BackboneContract.builds_on_meta`
        return
    _check_tensors(path, model, tensors)


def _read_checkpoint(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    with open_safetensors(path, "pt") as file:
        names = [name for name in file.keys() if not name.startswith(_USED_FACES)]  # noqa: SIM118 - not a mapping
        return parse_info(path, file.metadata()), {name: file.get_tensor(name) for name in names}


def _build_backbone(path: Path, info: CheckpointInfo, *, pretrained: bool) -> Backbone:
    """Build the backbone of a checkpoint; the tensors of a frozen one are not in the file, but ``pretrained``."""
    try:
        plugin, backbone_class = load_backbone(info.model)
    except PluginError as error:
        raise CheckpointError(f"{path} was written by {info.distribution} {info.version}: {error}") from error
    backbone = build_backbone(plugin, backbone_class, pretrained=pretrained, options=info.build)
    if backbone.input_spec.to_json() != info.input_spec:
        raise CheckpointError(
            f"{path} was written by {info.distribution} {info.version}, whose backbone '{info.model}' takes another "
            "input than the installed one. Install that version."
        )
    return backbone


def _check_base(path: Path, info: CheckpointInfo, backbone: Backbone) -> None:
    """Check that a frozen backbone has the weights that the heads were trained on."""
    if not backbone.frozen and info.base is None:
        return
    found = {"identity": backbone.identity, "fingerprint": fingerprint_tensors(backbone)}
    if info.base != found:
        expected = info.base or {}
        raise CheckpointError(
            f"{path} contains heads for the base {expected.get('identity')} ({expected.get('fingerprint', '')[:12]}…), "
            f"but backbone '{info.model}' has {found['identity']} ({found['fingerprint'][:12]}…). "
            "Use the weights that the heads were trained on, or train again."
        )


def _check_tensors(path: Path, model: AgeGenderModel, tensors: dict[str, Tensor]) -> None:
    """Check that the file has the tensors that the model stores, in the same shapes."""
    expected = _select_stored_tensors(model)
    # Files of older versions have shared tensors under each of their names.
    if missing := sorted(expected.keys() - tensors.keys() - _list_repeated(model)):
        raise CheckpointError(f"{path} lacks {len(missing)} tensors, the first is {shorten(missing[0])}")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{path} has {len(surplus)} unexpected tensors, the first is {shorten(surplus[0])}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            raise CheckpointError(f"{path}: the tensor {name} has the shape {shapes}")
        if tensor.is_floating_point() != expected[name].is_floating_point() or tensor.is_complex():
            raise CheckpointError(f"{path}: the tensor {name} has the type {tensor.dtype}")


def _select_stored_tensors(model: AgeGenderModel) -> dict[str, Tensor]:
    """Return the tensors that belong in a checkpoint, by name."""
    state: dict[str, Tensor] = model.state_dict()
    if model.backbone.frozen:
        return {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    return state


def _list_repeated(model: AgeGenderModel) -> set[str]:
    """Return all names but the first of each parameter and buffer that several modules share."""
    every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    first = (*model.named_parameters(), *model.named_buffers())
    return {name for name, _ in every} - {name for name, _ in first}


def fingerprint_tensors(module: nn.Module) -> str:
    """Return a SHA-256 over the names, types, shapes and bytes of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
