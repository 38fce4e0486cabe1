"""``agegen download``: what models and detectors want from elsewhere, fetched before it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from agegen.errors import AgegenError
from agegen.faces.detection import PREFERRED_DETECTOR, create_detector, list_detectors
from agegen.model.weights import find_weights, list_weights
from agegen.plugins import build_backbone, list_plugins, load_plugin


@dataclass(frozen=True)
class Fetched:
    """One thing that is wanted, and what stood in the way, None where it is at hand now."""

    name: str
    problem: str | None = None


def download_all(everything: bool = False) -> Iterator[Fetched]:
    """Fetch what ``agegen predict`` prefers, and yield each thing; what is at hand already is checked alone.

    ``everything``: also the weights on the Hub of all models, and those that backbones begin with in training, other
    packages' too. Detectors and weights are checked against their SHA-256; each backbone and detector is built once,
    which is what fetches its files, whoever wrote it.
    """
    yield fetch(f"detector {PREFERRED_DETECTOR}", partial(create_detector, PREFERRED_DETECTOR))
    if not everything:
        return
    for name in list_detectors():
        if name != PREFERRED_DETECTOR:
            yield fetch(f"detector {name}", partial(create_detector, name))
    for plugin in list_plugins():
        if plugin.taken_by is not None:
            continue
        try:
            listed = [weights for weights in list_weights(plugin) if weights.remote]
            backbone = load_plugin(plugin)
        except AgegenError as error:
            yield Fetched(f"model {plugin.name}", str(error))
            continue
        for weights in listed:
            label = f"weights {plugin.name}, {weights.name}"
            yield fetch(label, partial(find_weights, plugin.name, weights.name))
        # Of those that take an argument, such as timm's, nobody knows which ones are wanted.
        if not backbone.argument_name:
            yield fetch(f"backbone {plugin.name}", partial(build_backbone, plugin, backbone))


def fetch(name: str, get: Callable[[], object]) -> Fetched:
    """Return what came of fetching one thing."""
    try:
        get()
    except AgegenError as error:
        return Fetched(name, str(error))
    return Fetched(name)
