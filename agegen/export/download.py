"""``agegen download``: fetch the files of detectors and models ahead of their first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from agegen.errors import AgegenError
from agegen.faces.detection import PREFERRED_DETECTOR, create_detector, list_detectors
from agegen.model.weights import find_weights, list_weights
from agegen.plugins import build_backbone, list_plugins, load_plugin


@dataclass(frozen=True)
class Download:
    """A detector or a model's files; ``problem`` is None if they are available."""

    name: str
    problem: str | None = None


def download_all(everything: bool = False) -> Iterator[Download]:
    """Download the preferred face detector and yield it; files that are available already are only checked.

    ``everything``: also all other detectors, all models' weights on the Hub, and the pretrained weights of all
    backbones, including those of other packages. Detectors and weights are checked against their SHA-256. Detectors
    and backbones are built once, since that downloads whatever files they need.
    """
    yield _download(f"detector {PREFERRED_DETECTOR}", partial(create_detector, PREFERRED_DETECTOR))
    if not everything:
        return
    for name in list_detectors():
        if name != PREFERRED_DETECTOR:
            yield _download(f"detector {name}", partial(create_detector, name))
    for plugin in list_plugins():
        if plugin.taken_by is not None:
            continue
        try:
            listed = [weights for weights in list_weights(plugin) if weights.remote]
            backbone = load_plugin(plugin)
        except AgegenError as error:
            yield Download(f"model {plugin.name}", str(error))
            continue
        for weights in listed:
            label = f"weights {plugin.name}, {weights.name}"
            yield _download(label, partial(find_weights, plugin.name, weights.name))
        # Backbones with an argument, such as timm's, are families of networks: which of them is needed is unknown.
        if not backbone.argument_name:
            yield _download(f"backbone {plugin.name}", partial(build_backbone, plugin, backbone))


def _download(name: str, get: Callable[[], object]) -> Download:
    try:
        get()
    except AgegenError as error:
        return Download(name, str(error))
    return Download(name)
