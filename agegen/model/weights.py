"""Find weights: those bundled with a plugin, those of a run, and those on the Hugging Face Hub, pinned and checked."""

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

HUB_CHECKPOINT = "model.safetensors"
_HUB_ONNX = "model.onnx"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# As a path, an address has lost one of its slashes.
_ADDRESS = re.compile(r"hf:/{1,2}([^@]+?)(?:@([\w./-]+))?/?")


def is_hub_run(run: str | Path | None) -> bool:
    """Return whether a run is one on the Hub."""
    return run is not None and str(run).startswith("hf:/")


def parse_repository(text: str) -> str:
    """Return a repository's name.

    Raises:
        AgegenError: it isn't OWNER/NAME.
    """
    if not _REPOSITORY.fullmatch(text):
        raise AgegenError(f"'{text}' is no name on the Hub: give OWNER/NAME")
    return text


def fetch_hub_run(run: str | Path) -> Path:
    """Return the checkpoint of a run on the Hub, from the cache or downloaded; its ONNX file comes beside it.

    Both are of one revision: the one named, else the newest that the cache knows, else the Hub's newest. Weights are
    safetensors, nothing is unpickled, and an ONNX file of other weights is noticed by its checksum.

    Raises:
        AgegenError: the address is wrong, or the file is neither in the cache nor to be downloaded.
    """
    match = _ADDRESS.fullmatch(str(run))
    if match is None:
        raise AgegenError(f"'{run}' is no run on the Hub: give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    repository, revision = parse_repository(match[1]), match[2]
    checkpoint = download_file(repository, HUB_CHECKPOINT, revision)
    # The folder of a snapshot is named by its commit: the other file comes from the same one.
    if not checkpoint.with_name(_HUB_ONNX).is_file():
        with suppress(AgegenError):
            download_file(repository, _HUB_ONNX, checkpoint.parent.name)
    return checkpoint


# What `agegen predict` uses: the most accurate on other people's photographs, and the quickest.
DEFAULT_MODEL = "compact"
# In the folder of the plugin's package.
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "MODEL_CARD.md"
# There too, where a plugin has more than one file of weights, or none in the package: see `list_weights`.
WEIGHTS_LIST = "weights.json"
DEFAULT_WEIGHTS = "default"
_PINNED = re.compile(r"hf://([^/@]+/[^/@]+)@([^/@]+)(?:/(.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BundledWeights:
    """One file of weights of a plugin.

    Attributes:
        name: ``default``, or what ``--weights`` asks for.
        source: the name of a file in the plugin's package, or ``hf://OWNER/NAME@REVISION/FILE``.
        sha256: of the file; always there for those on the Hub.
        card: the name of the card in the package.
    """

    name: str
    source: str
    sha256: str = ""
    card: str = CARD_FILE

    @property
    def remote(self) -> bool:
        """Whether the file lies on the Hub."""
        return self.source.startswith("hf://")


def list_weights(plugin: Plugin) -> list[BundledWeights]:
    """Return the weights that ship for a plugin, without importing it: the default ones first.

    They are ``weights.safetensors`` in its package. A file ``weights.json`` there may name others, each by a file in
    the package or on the Hub, where the revision is pinned and the file checked::

        {
          "default": {"source": "weights.safetensors"},
          "large": {"source": "hf://OWNER/NAME@REVISION/large.safetensors", "sha256": "…", "card": "LARGE.md"}
        }

    Raises:
        CheckpointError: ``weights.json`` has another form.
    """
    path = locate_file(plugin, WEIGHTS_LIST)
    if path is None:
        return [BundledWeights(DEFAULT_WEIGHTS, WEIGHTS_FILE)] if locate_file(plugin, WEIGHTS_FILE) else []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = [_read_entry(name, entry) for name, entry in content.items()]
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"backbone '{plugin.name}' of {plugin.source}: {path} can't be used: {error}") from error
    return sorted(listed, key=lambda weights: weights.name != DEFAULT_WEIGHTS)


def _read_entry(name: str, entry: dict[str, Any]) -> BundledWeights:
    weights = BundledWeights(
        name, str(entry["source"]), str(entry.get("sha256", "")), str(entry.get("card", CARD_FILE))
    )
    if weights.remote:
        if not (_PINNED.fullmatch(weights.source) and _SHA256.fullmatch(weights.sha256)):
            raise ValueError(f"'{name}' on the Hub wants hf://OWNER/NAME@REVISION/FILE and a sha256 of 64 digits")
    elif Path(weights.source).name != weights.source:
        raise ValueError(f"'{name}' must be a file beside it")
    return weights


def split_weights_name(name: str) -> tuple[str, str]:
    """Return the model and the weights that ``NAME`` or ``NAME/WEIGHTS`` stands for."""
    model, _, weights = name.partition("/")
    return model, weights or DEFAULT_WEIGHTS


def parse_weights_name(name: str) -> tuple[str, str] | None:
    """Return the same; None where the name is that of a path that exists, or no backbone is called so."""
    model, weights = split_weights_name(name)
    known = model in {plugin.name for plugin in list_plugins()}
    return (model, weights) if known and not Path(name).exists() else None


def find_checkpoint(model: str | None, run: Path | None, weights: str | None = None) -> Path:
    """Return the checkpoint that is meant: of a run, a file of its own, or the weights that ship for a model.

    Raises:
        AgegenError: both are given, or what is named isn't there.
    """
    if run is not None and model is not None:
        raise AgegenError("give either a run or --model, not both")
    if run is not None and weights is not None:
        raise AgegenError("--weights names weights that ship for a model; a run has its own")
    if run is not None and is_hub_run(run):
        return fetch_hub_run(run)
    if run is None:
        return find_weights(model or DEFAULT_MODEL, weights or DEFAULT_WEIGHTS)
    if is_standalone_file(run):
        return run
    return open_run(run).checkpoint


def find_weights(model: str, name: str = DEFAULT_WEIGHTS) -> Path:
    """Return the weights that ship for a model, those of a name where there are several.

    Raises:
        CheckpointError: none of that name ship for it, or they are another file than is known.
        AgegenError: they lie on the Hub, are not in the cache and can't be downloaded.
    """
    plugin = find_plugin(model)
    chosen = _choose_weights(plugin, name)
    path = _fetch(chosen) if chosen.remote else locate_file(plugin, chosen.source)
    if path is None:
        raise CheckpointError(f"backbone '{model}' of {plugin.source}: its package lacks {chosen.source}")
    if chosen.sha256 and (found := digest_file(path)) != chosen.sha256:
        raise CheckpointError(
            f"{path} is not what backbone '{model}' of {plugin.source} ships (SHA-256 {found[:12]}…, not "
            f"{chosen.sha256[:12]}…); delete it, and it is fetched anew"
        )
    return path


def _choose_weights(plugin: Plugin, name: str) -> BundledWeights:
    listed = list_weights(plugin)
    for weights in listed:
        if weights.name == name:
            return weights
    if listed:
        names = ", ".join(weights.name for weights in listed)
        raise CheckpointError(f"no weights '{name}' ship for '{plugin.name}'; there are {names}")
    having = [other.name for other in list_plugins() if _have_any(other)]
    known = f"weights ship for {', '.join(having)}" if having else "train a model first"
    raise CheckpointError(f"no weights ship for '{plugin.name}'; {known}, or give a run")


def _have_any(plugin: Plugin) -> bool:
    return locate_file(plugin, WEIGHTS_FILE) is not None or locate_file(plugin, WEIGHTS_LIST) is not None


def _fetch(weights: BundledWeights) -> Path:
    match = _PINNED.fullmatch(weights.source)
    assert match is not None
    repository, revision, file = match.groups()
    return download_file(repository, file or WEIGHTS_FILE, revision)


def read_card(model: str, name: str = DEFAULT_WEIGHTS) -> str:
    """Return the card of the weights that ship for a model.

    Raises:
        CheckpointError: no weights ship for it, or they have no card.
    """
    plugin = find_plugin(model)
    chosen = _choose_weights(plugin, name)
    path = locate_file(plugin, chosen.card)
    if path is None:
        raise CheckpointError(f"the weights '{name}' of '{model}' have no card: its package lacks {chosen.card}")
    return path.read_text(encoding="utf-8")
