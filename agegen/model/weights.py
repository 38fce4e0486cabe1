"""Find checkpoints: weights bundled with a plugin, runs, and weights on the Hugging Face Hub, pinned and checked."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.errors import AgegenError, CheckpointError
from agegen.files import digest_file
from agegen.hub import download_file
from agegen.plugins import Plugin, find_plugin, list_plugins, locate_file
from agegen.runs import is_standalone_file, open_run

# The default of `agegen predict`: the fastest, and the most accurate on photos from other sources.
DEFAULT_MODEL = "compact"
DEFAULT_WEIGHTS = "default"
# In the folder of the plugin's package; WEIGHTS_LIST only if the plugin has several weights, or weights on the Hub.
WEIGHTS_FILE = "weights.safetensors"
WEIGHTS_LIST = "weights.json"
CARD_FILE = "MODEL_CARD.md"
# The files of a run on the Hub.
HUB_CHECKPOINT = "model.safetensors"
_HUB_ONNX = "model.onnx"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# One slash or two: `Path("hf://OWNER/NAME")` drops one of them.
_HUB_RUN = re.compile(r"hf:/{1,2}([^@]+?)(?:@([\w./-]+))?/?")
_PINNED = re.compile(r"hf://([^/@]+/[^/@]+)@([^/@]+)(?:/(.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def find_checkpoint(model: str | None, run: Path | None, weights: str | None = None) -> Path:
    """Return a checkpoint: of a run (its folder, a file, or ``hf://``), or the bundled weights of a model.

    Raises:
        AgegenError: both a run and a model are given, or the checkpoint does not exist.
    """
    if run is not None and model is not None:
        raise AgegenError("a run and --model were both given. Give only one of them.")
    if run is not None and weights is not None:
        raise AgegenError("--weights selects bundled weights of a model, so it cannot be combined with a run")
    if run is None:
        return find_weights(model or DEFAULT_MODEL, weights or DEFAULT_WEIGHTS)
    if is_hub_run(run):
        return fetch_hub_run(run)
    if is_standalone_file(run):
        return run
    folder = open_run(run)
    return folder.verify(folder.checkpoint)


@dataclass(frozen=True)
class BundledWeights:
    """One file of weights of a plugin.

    Attributes:
        name: ``default``, or the name for ``--weights``.
        source: a file name in the plugin's package, or ``hf://OWNER/NAME@REVISION/FILE``.
        sha256: of the file; never empty for files on the Hub.
        card: file name of the model card in the package.
    """

    name: str
    source: str
    sha256: str = ""
    card: str = CARD_FILE

    @property
    def remote(self) -> bool:
        """Whether the file is on the Hub."""
        return self.source.startswith("hf://")


def list_weights(plugin: Plugin) -> list[BundledWeights]:
    """Return the bundled weights of a plugin, the default first, without importing the plugin.

    A plugin with one file of weights has ``weights.safetensors`` in its package. Otherwise ``weights.json`` lists
    them, each as a file in the package or on the Hub, where revision and checksum are pinned::

        {
          "default": {"source": "weights.safetensors"},
          "large": {"source": "hf://OWNER/NAME@REVISION/large.safetensors", "sha256": "…", "card": "LARGE.md"}
        }

    Raises:
        CheckpointError: ``weights.json`` is invalid.
    """
    path = locate_file(plugin, WEIGHTS_LIST)
    if path is None:
        return [BundledWeights(DEFAULT_WEIGHTS, WEIGHTS_FILE)] if locate_file(plugin, WEIGHTS_FILE) else []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = [_parse_entry(name, entry) for name, entry in content.items()]
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"backbone '{plugin.name}' of {plugin.source}: {path} is invalid: {error}") from error
    return sorted(listed, key=lambda weights: weights.name != DEFAULT_WEIGHTS)


def _parse_entry(name: str, entry: dict[str, Any]) -> BundledWeights:
    weights = BundledWeights(
        name, str(entry["source"]), str(entry.get("sha256", "")), str(entry.get("card", CARD_FILE))
    )
    if weights.remote:
        if not (_PINNED.fullmatch(weights.source) and _SHA256.fullmatch(weights.sha256)):
            raise ValueError(f"'{name}' requires hf://OWNER/NAME@REVISION/FILE and a sha256 of 64 digits")
    elif Path(weights.source).name != weights.source:
        raise ValueError(f"'{name}' must be a file in the same folder")
    return weights


def split_weights_name(name: str) -> tuple[str, str]:
    """Return the model and the weights of ``NAME`` or ``NAME/WEIGHTS``."""
    model, _, weights = name.partition("/")
    return model, weights or DEFAULT_WEIGHTS


def parse_weights_name(name: str) -> tuple[str, str] | None:
    """Return the model and the weights of ``NAME`` or ``NAME/WEIGHTS``; None for an existing path or unknown model."""
    model, weights = split_weights_name(name)
    known = model in {plugin.name for plugin in list_plugins()}
    return (model, weights) if known and not Path(name).exists() else None


def find_weights(model: str, name: str = DEFAULT_WEIGHTS) -> Path:
    """Return the path of a model's bundled weights; weights on the Hub are downloaded unless they are cached.

    Raises:
        CheckpointError: the model has no bundled weights of that name, or their checksum is wrong.
        AgegenError: the weights are on the Hub, are not cached, and cannot be downloaded.
    """
    plugin = find_plugin(model)
    chosen = _choose_weights(plugin, name)
    path = _download(chosen) if chosen.remote else locate_file(plugin, chosen.source)
    if path is None:
        raise CheckpointError(f"backbone '{model}' of {plugin.source}: its package lacks {chosen.source}")
    if chosen.sha256 and (found := digest_file(path)) != chosen.sha256:
        advice = "Delete it, so that it is downloaded again" if chosen.remote else f"Reinstall {plugin.distribution}"
        raise CheckpointError(
            f"{path} is not the file that backbone '{model}' of {plugin.source} names: its SHA-256 is {found[:12]}…, "
            f"not {chosen.sha256[:12]}…. {advice}."
        )
    return path


def read_card(model: str, name: str = DEFAULT_WEIGHTS) -> str:
    """Return the model card of bundled weights.

    Raises:
        CheckpointError: the model has no such weights, or they have no card.
    """
    plugin = find_plugin(model)
    chosen = _choose_weights(plugin, name)
    path = locate_file(plugin, chosen.card)
    if path is None:
        raise CheckpointError(f"the weights '{name}' of '{model}' have no model card: its package lacks {chosen.card}")
    return path.read_text(encoding="utf-8")


def _choose_weights(plugin: Plugin, name: str) -> BundledWeights:
    listed = list_weights(plugin)
    for weights in listed:
        if weights.name == name:
            return weights
    if listed:
        names = ", ".join(weights.name for weights in listed)
        raise CheckpointError(f"'{plugin.name}' has no bundled weights '{name}'. Choose one of: {names}.")
    models = [other.name for other in list_plugins() if _has_weights(other)]
    advice = f"Models with bundled weights: {', '.join(models)}." if models else "Train it first."
    raise CheckpointError(f"'{plugin.name}' has no bundled weights. {advice} Or give a run.")


def _has_weights(plugin: Plugin) -> bool:
    return locate_file(plugin, WEIGHTS_FILE) is not None or locate_file(plugin, WEIGHTS_LIST) is not None


def _download(weights: BundledWeights) -> Path:
    match = _PINNED.fullmatch(weights.source)
    assert match is not None
    repository, revision, file = match.groups()
    return download_file(repository, file or WEIGHTS_FILE, revision)


def is_hub_run(run: str | Path | None) -> bool:
    """Return whether a run is an ``hf://`` address on the Hub."""
    return run is not None and str(run).startswith("hf:/")


def fetch_hub_run(run: str | Path) -> Path:
    """Return the checkpoint of a run on the Hub, downloaded unless it is cached, with its ONNX file next to it.

    Both files are from one revision: the named one, or the newest on the Hub, or, without an answer of the Hub, in the
    cache. The weights are safetensors, so nothing is unpickled. An ONNX file of other weights is detected later by its
    checksum.

    Raises:
        AgegenError: the address is invalid, or the checkpoint is not cached and cannot be downloaded.
    """
    match = _HUB_RUN.fullmatch(str(run))
    if match is None:
        raise AgegenError(f"invalid address of a run: '{run}'. Give hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    repository, revision = parse_repository(match[1]), match[2]
    checkpoint = download_file(repository, HUB_CHECKPOINT, revision, newest=True)
    # A snapshot folder of the cache is named after its commit, so the ONNX file comes from the same commit.
    if not checkpoint.with_name(_HUB_ONNX).is_file():
        with suppress(AgegenError):
            download_file(repository, _HUB_ONNX, checkpoint.parent.name)
    return checkpoint


def parse_repository(text: str) -> str:
    """Return the name of a Hub repository unchanged.

    Raises:
        AgegenError: it does not have the form OWNER/NAME.
    """
    if not _REPOSITORY.fullmatch(text):
        raise AgegenError(f"invalid repository name: '{text}'. Give OWNER/NAME.")
    return text
