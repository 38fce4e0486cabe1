"""The weights that ship with a backbone, and which checkpoint a user means."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from agegen.errors import AgegenError, CheckpointError
from agegen.registry import Plugin, find_plugin, list_plugins
from agegen.runs import open_run

DEFAULT_MODEL = "scratch"
# In the folder of the plugin's package.
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "MODEL_CARD.md"


def find_checkpoint(model: str | None, run: Path | None) -> Path:
    """Return the checkpoint that is meant: of a run, a file of its own, or the weights that ship for a model.

    Raises:
        AgegenError: both are given, or what is named isn't there.
    """
    if run is not None and model is not None:
        raise AgegenError("give either a run or --model, not both")
    if run is None:
        return find_weights(model or DEFAULT_MODEL)
    if run.is_file() and not (run.parent / "run.json").exists():
        return run
    return open_run(run).checkpoint


def find_weights(model: str) -> Path:
    """Return the weights that ship for a model.

    Raises:
        CheckpointError: none ship for it; the error names those models that have some.
    """
    path = locate_file(find_plugin(model), WEIGHTS_FILE)
    if path is None:
        having = [plugin.name for plugin in list_plugins() if locate_file(plugin, WEIGHTS_FILE)]
        known = f"weights ship for {', '.join(having)}" if having else "train a model first"
        raise CheckpointError(f"no weights ship for '{model}'; {known}, or give a run")
    return path


def find_module(plugin: Plugin) -> ModuleSpec | None:
    """Return where a plugin's module lies, without importing it; None where there is none."""
    try:
        return find_spec(plugin.entry_point.module)
    except (ImportError, ValueError, AttributeError):
        return None


def locate_file(plugin: Plugin, name: str) -> Path | None:
    """Return a file in the folder of a plugin's package, without importing it; None where it isn't there."""
    spec = find_module(plugin)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, name)).is_file():
            return path
    return None


def read_card(model: str) -> str:
    """Return the card of the weights that ship for a model.

    Raises:
        CheckpointError: no weights ship for it, or they have no card.
    """
    path = find_weights(model).with_name(CARD_FILE)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
