"""Any backbone of timm: fine-tuned, trained from nothing, or frozen with its features computed once."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from agegen.backbone import Backbone, HeadConfig, InputSpec, TrainingDefaults
from agegen.errors import AgegenError
from agegen.hub import create_timm

# Fine-tuning on some 10,000 faces: rates of a hundredth of training from nothing for the first layers, by layer decay
# (Bao et al., "BEiT", ICLR 2022; 0.75 is what timm's own recipes take for small networks).
FINE_TUNED = TrainingDefaults(epochs=15, lr=5e-4, batch_size=64, age_balance=0.2, layer_decay=0.75)
# As `compact` trains, with half of its rate: few architectures are as forgiving as one with zero-initialised norms.
FROM_NOTHING = TrainingDefaults(epochs=40, lr=1.5e-3, batch_size=128, age_balance=0.2)
# As `vgg16` trains its heads.
FROZEN = TrainingDefaults(epochs=15, lr=1e-3, batch_size=128, weight_decay=0.2, views=4, age_balance=0.3)
# Stochastic depth, where a network has it: what timm's recipes take for its small ones.
DROP_PATH = 0.1
# Of networks whose own head holds more than this share of their parameters (VGG16: 89 %, MobileNetV4-small: 64 %) the
# last map is taken instead.
GREATEST_HEAD = 0.8


class TimmBackbone(Backbone):
    """One of timm's networks without its classifier; its pooled output is the features.

    Input size, mean and standard deviation are those of timm's data config, unless ``image_size`` says otherwise.
    Source: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
    """

    argument_name = "ARCHITECTURE"

    def __init__(
        self, name: str, *, pretrained: bool = True, image_size: int | None = None, freeze: bool = False
    ) -> None:
        """Build a network by timm's name for it, ``resnet18`` or with the tag of its weights ``resnet18.a1_in1k``.

        Raises:
            AgegenError: timm has none of that name or weights, they can't be downloaded, or it doesn't take this size.
        """
        super().__init__(pretrained=pretrained)
        check_name(name)
        self.net: nn.Module = build_network(name, pretrained, image_size)
        config = read_config(self.net)
        size = image_size or max(config["input_size"][1:])
        self.input_spec = InputSpec(size, tuple(config["mean"]), tuple(config["std"]))
        self.feature_dim = measure_features(self, name, size)
        self.frozen = freeze
        self.identity = f"timm/{config['name']}" if freeze else ""
        self.defaults = FROZEN if freeze else FINE_TUNED if pretrained else FROM_NOTHING
        self.heads = (
            HeadConfig(hidden=128, dropout=0.5, standardize=True) if freeze else HeadConfig(hidden=128, dropout=0.2)
        )

    @classmethod
    def from_argument(
        cls, argument: str, *, pretrained: bool = True, image_size: int | None = None, freeze: bool = False
    ) -> TimmBackbone:
        """Build the network that ``--model timm:ARCHITECTURE`` names."""
        return cls(argument, pretrained=pretrained, image_size=image_size, freeze=freeze)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, size, size) to features (N, feature_dim): maps by their mean."""
        output: Any = self.net(images)
        features: Tensor = output[-1] if isinstance(output, list) else output
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features

    def group_parameters(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]] | None:
        """Return timm's groups: by layers, as the network itself numbers them; without such, by its modules."""
        from timm.optim import param_groups_layer_decay, param_groups_weight_decay

        if layer_decay is None:
            return None
        if not hasattr(self.net, "group_matcher"):
            # Activations and pooling have nothing to learn: counted, they would leave VGG's first blocks as they are.
            parts = [part for part in self.net.children() if any(True for _ in part.parameters())]
            return [
                {**group, "lr_scale": layer_decay ** (len(parts) - place)}
                for place, part in enumerate(parts)
                for group in param_groups_weight_decay(part, weight_decay)
            ]
        spared: Any = getattr(self.net, "no_weight_decay", tuple)()
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.net, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
        )
        return groups


def check_name(name: str) -> None:
    """Check that timm knows a network, and the weights that its tag names.

    Raises:
        AgegenError: it doesn't; the error names near ones.
    """
    import timm

    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise AgegenError(f"timm has no network '{architecture}'{_suggest(architecture, timm.list_models())}")
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise AgegenError(f"timm has no weights '{name}'{_suggest(name, known)}")


def _suggest(name: str, known: list[str]) -> str:
    # Names that contain what was written come before those that are merely spelt alike.
    near = [*sorted((one for one in known if name and name in one), key=len)[:3], *get_close_matches(name, known, 5)]
    return f"; near: {', '.join(dict.fromkeys(near))}" if near else "; see timm.list_models()"


def build_network(name: str, pretrained: bool, image_size: int | None) -> nn.Module:
    """Build a network without classifier, for a size where it has to know it beforehand, with stochastic depth.

    Raises:
        AgegenError: its weights can't be had, or it can't be built for that size.
    """
    shape = {"features_only": True, "out_indices": (-1,)} if has_large_head(name) else {"num_classes": 0}
    for extra in list_extras(image_size):
        try:
            return create_timm(name, pretrained=pretrained, **shape, **extra)
        except TypeError as error:
            # Not every network has these options; what else is wrong stays so without them.
            refused = error
    raise AgegenError(f"timm can't build '{name}': {refused}") from refused


def list_extras(image_size: int | None) -> list[dict[str, Any]]:
    """Return options that not every network has, all of them first, none of them last."""
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    deep: dict[str, Any] = {"drop_path_rate": DROP_PATH}
    tried: list[dict[str, Any]] = [{**sized, **deep}, sized, deep, {}]
    return [extra for place, extra in enumerate(tried) if extra not in tried[:place]]


def has_large_head(name: str) -> bool:
    """Return whether what comes after a network's last map holds most of its parameters."""
    import timm

    try:
        with torch.device("meta"):
            whole, maps = (
                sum(parameter.numel() for parameter in timm.create_model(name, **options).parameters())
                for options in ({"num_classes": 0}, {"features_only": True, "out_indices": (-1,)})
            )
    except Exception:  # networks without maps, or that can't be built so: each raises what it likes
        return False
    return bool(maps < (1 - GREATEST_HEAD) * whole)


def read_config(network: nn.Module) -> dict[str, Any]:
    """Return timm's data config of a network (``input_size``, ``mean``, ``std``), with the ``name`` of its weights."""
    from timm.data import resolve_data_config

    cfg: Any = network.pretrained_cfg
    values = cfg if isinstance(cfg, dict) else cfg.to_dict()
    name = ".".join(str(values[part]) for part in ("architecture", "tag") if values.get(part))
    return {**resolve_data_config(pretrained_cfg=values), "name": name or str(values.get("hf_hub_id", ""))}


def measure_features(backbone: TimmBackbone, name: str, size: int) -> int:
    """Return how many features a network gives, by trying it on one picture.

    Raises:
        AgegenError: it doesn't take pictures of that size, or gives neither a map nor a vector.
    """
    device = next(backbone.net.parameters()).device
    mode = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # assertions and shape errors of any kind
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AgegenError(f"'{name}' takes no pictures of {size}×{size} pixels ({cause}); try --image-size") from error
    finally:
        backbone.train(mode)
    if features.ndim != 2:
        raise AgegenError(
            f"'{name}' gives features of the shape {tuple(features.shape)}, not a vector for each picture"
        )
    return int(features.shape[1])
