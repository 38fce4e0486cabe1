"""Any timm network as a backbone: fine-tuned, trained from scratch, or frozen with its features computed once."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from agegen.backbone import Backbone, HeadConfig, InputSpec, TrainingDefaults
from agegen.errors import AgegenError
from agegen.hub import create_timm

# For about 10,000 faces. The first layers learn at about a hundredth of the rate for training from scratch, by layer
# decay (Bao et al., "BEiT", ICLR 2022; 0.75 is the value in timm's recipes for small networks).
FINE_TUNED = TrainingDefaults(epochs=15, lr=5e-4, batch_size=64, age_balance=0.2, layer_decay=0.75)
# Like `compact`, with half of its rate: few architectures tolerate as high a rate as one with zero-initialized norms.
FROM_SCRATCH = TrainingDefaults(epochs=40, lr=1.5e-3, batch_size=128, age_balance=0.2)
# Like the heads of `vgg16`.
FROZEN = TrainingDefaults(epochs=15, lr=1e-3, batch_size=128, weight_decay=0.2, views=4, age_balance=0.3)
# The rate of stochastic depth, if the network supports it: that of timm's recipes for small networks.
DROP_PATH = 0.1
# If the layers after the last map hold more than this fraction of the parameters (VGG16: 89 %, MobileNetV4-small:
# 64 %), the last map is used instead.
MAX_HEAD_FRACTION = 0.8


class TimmBackbone(Backbone):
    """A timm network without its classifier; the features are its pooled output.

    Input size, mean and standard deviation are those of timm's data config; ``image_size`` overrides the size.
    Source: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
    """

    argument_name = "ARCHITECTURE"

    def __init__(
        self, name: str, *, pretrained: bool = True, image_size: int | None = None, freeze: bool = False
    ) -> None:
        """Build a network by its timm name, e.g. ``resnet18``, or with the tag of its weights, ``resnet18.a1_in1k``.

        Raises:
            AgegenError: timm does not know the network or the tag, the weights cannot be downloaded, or the network
                does not accept this image size.
        """
        super().__init__(pretrained=pretrained)
        check_name(name, pretrained)
        self.net: nn.Module = build_network(name, pretrained, image_size)
        config = read_config(self.net)
        size = image_size or max(config["input_size"][1:])
        self.input_spec = InputSpec(size, tuple(config["mean"]), tuple(config["std"]))
        self.feature_dim = count_features(self, name, size)
        self.frozen = freeze
        self.identity = f"timm/{config['name']}" if freeze else ""
        self.defaults = FROZEN if freeze else FINE_TUNED if pretrained else FROM_SCRATCH
        self.heads = (
            HeadConfig(hidden=128, dropout=0.5, standardize=True) if freeze else HeadConfig(hidden=128, dropout=0.2)
        )

    @classmethod
    def from_argument(
        cls, argument: str, *, pretrained: bool = True, image_size: int | None = None, freeze: bool = False
    ) -> TimmBackbone:
        """Build the network for ``--model timm:ARCHITECTURE``."""
        return cls(argument, pretrained=pretrained, image_size=image_size, freeze=freeze)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, size, size) to features (N, feature_dim); maps are averaged."""
        output: Any = self.net(images)
        features: Tensor = output[-1] if isinstance(output, list) else output
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features

    def group_parameters(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]] | None:
        """Return timm's parameter groups by layer, or by module if the network does not define its layers."""
        from timm.optim import param_groups_layer_decay, param_groups_weight_decay

        if layer_decay is None:
            return None
        if not hasattr(self.net, "group_matcher"):
            # Activations and pooling have no parameters. If they counted as layers, the first blocks of VGG would
            # hardly be trained.
            parts = [part for part in self.net.children() if any(True for _ in part.parameters())]
            return [
                {**group, "lr_scale": layer_decay ** (len(parts) - place)}
                for place, part in enumerate(parts)
                for group in param_groups_weight_decay(part, weight_decay)
            ]
        not_decayed: Any = getattr(self.net, "no_weight_decay", tuple)()
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.net, weight_decay, no_weight_decay_list=not_decayed, layer_decay=layer_decay
        )
        return groups


def check_name(name: str, pretrained: bool = False) -> None:
    """Check that timm knows a network, its weights if the name has a tag, and that it has any if it is ``pretrained``.

    Names of Hub repositories (``hf-hub:…``) and folders, which timm would also load, are not in its registry.

    Raises:
        AgegenError: the name is unknown, or there are no weights; the message suggests similar names.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise AgegenError(f"timm has no network '{architecture}'. {_suggest(architecture, timm.list_models())}")
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise AgegenError(f"timm has no weights '{name}'. {_suggest(name, known)}")
    if pretrained and not timm.is_model_pretrained(architecture):
        weighted = sorted({full.partition(".")[0] for full in timm.list_pretrained()})
        raise AgegenError(
            f"timm has no pretrained weights for '{architecture}'. Add --no-pretrained, or choose another network. "
            f"{_suggest(architecture, weighted)}"
        )


def _suggest(name: str, known: list[str]) -> str:
    """Return a hint with similar names: those that contain the name first, then those with a similar spelling."""
    similar = [*sorted((one for one in known if name and name in one), key=len)[:3], *get_close_matches(name, known, 5)]
    return f"Similar: {', '.join(dict.fromkeys(similar))}." if similar else "See timm.list_models()."


def build_network(name: str, pretrained: bool, image_size: int | None) -> nn.Module:
    """Build a network without classifier, for a given image size, with stochastic depth if it supports that.

    Raises:
        AgegenError: its weights cannot be downloaded, or it cannot be built.
    """
    shape = {"features_only": True, "out_indices": (-1,)} if has_large_head(name) else {"num_classes": 0}
    for extra in list_extras(image_size):
        try:
            return create_timm(name, pretrained=pretrained, **shape, **extra)
        except TypeError as error:
            # Not every network supports these options. Any other TypeError also occurs without them.
            refused = error
    raise AgegenError(f"timm cannot build '{name}': {refused}") from refused


def list_extras(image_size: int | None) -> list[dict[str, Any]]:
    """Return the combinations of options that not every network supports, in the order to try them."""
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    deep: dict[str, Any] = {"drop_path_rate": DROP_PATH}
    tried: list[dict[str, Any]] = [{**sized, **deep}, sized, deep, {}]
    return [extra for place, extra in enumerate(tried) if extra not in tried[:place]]


def has_large_head(name: str) -> bool:
    """Return whether the layers after the last map of a network have most of its parameters."""
    import timm

    try:
        with torch.device("meta"):
            whole, maps = (
                sum(parameter.numel() for parameter in timm.create_model(name, **options).parameters())
                for options in ({"num_classes": 0}, {"features_only": True, "out_indices": (-1,)})
            )
    except Exception:  # networks without maps, or that cannot be built like this, raise various errors
        return False
    return bool(maps < (1 - MAX_HEAD_FRACTION) * whole)


def read_config(network: nn.Module) -> dict[str, Any]:
    """Return timm's data config of a network (``input_size``, ``mean``, ``std``), and the ``name`` of its weights."""
    from timm.data import resolve_data_config

    cfg: Any = network.pretrained_cfg
    values = cfg if isinstance(cfg, dict) else cfg.to_dict()
    name = ".".join(str(values[part]) for part in ("architecture", "tag") if values.get(part))
    return {**resolve_data_config(pretrained_cfg=values), "name": name or str(values.get("hf_hub_id", ""))}


def count_features(backbone: TimmBackbone, name: str, size: int) -> int:
    """Return the number of features of a network, by running it on one image.

    Raises:
        AgegenError: it does not accept images of this size, or its output is neither a map nor a vector.
    """
    device = next(backbone.net.parameters()).device
    mode = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # assertions and shape errors of any kind
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AgegenError(
            f"'{name}' does not accept images of {size}×{size} pixels ({cause}). Try another --image-size."
        ) from error
    finally:
        backbone.train(mode)
    if features.ndim != 2:
        raise AgegenError(
            f"the features of '{name}' have the shape {tuple(features.shape)} instead of one vector per image"
        )
    return int(features.shape[1])
