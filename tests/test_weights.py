"""Weights that ship with a backbone; a run on drawn faces stands in for them."""

import json
import shutil

import pytest

from agegen import weights
from agegen.errors import AgegenError, CheckpointError
from agegen.export import ExportConfig, export_run
from agegen.registry import find_plugin
from agegen.weights import WEIGHTS_FILE, find_checkpoint, find_weights, locate_file


@pytest.fixture
def shipped(trained_run, tmp_path, monkeypatch):
    """Let the backbone scratch ship the weights of the drawn run, and no other backbone any."""
    folder = tmp_path / "plugin"
    export_run(ExportConfig(trained_run, folder / WEIGHTS_FILE))

    def locate(plugin, name):
        path = folder / name
        return path if plugin.name == "scratch" and path.is_file() else None

    monkeypatch.setattr(weights, "locate_file", locate)
    monkeypatch.setattr("agegen.catalog.locate_file", locate)
    return folder / WEIGHTS_FILE


def test_which_checkpoint_is_meant(trained_run, shipped, tmp_path):
    assert find_checkpoint(None, None) == shipped
    assert find_checkpoint("scratch", None) == shipped
    assert find_checkpoint(None, trained_run) == trained_run / "best.safetensors"
    assert find_checkpoint(None, trained_run / "best.safetensors") == trained_run / "best.safetensors"
    alone = shutil.copy(trained_run / "best.safetensors", tmp_path / "alone.safetensors")
    assert find_checkpoint(None, alone) == alone
    with pytest.raises(AgegenError, match="not both"):
        find_checkpoint("scratch", trained_run)
    with pytest.raises(CheckpointError, match="no run at"):
        find_checkpoint(None, tmp_path / "none")
    with pytest.raises(CheckpointError, match="no weights ship for 'vgg16'; weights ship for scratch, or give a run"):
        find_weights("vgg16")


def test_files_are_found_without_importing_the_plugin(tmp_path, monkeypatch):
    from dataclasses import replace
    from importlib.metadata import EntryPoint

    (tmp_path / "brittle").mkdir()
    (tmp_path / "brittle" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "brittle" / WEIGHTS_FILE).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = find_plugin("scratch")
    entry = EntryPoint("brittle", "brittle:Net", "agegen.backbones")
    assert locate_file(replace(plugin, entry_point=entry), WEIGHTS_FILE) == tmp_path / "brittle" / WEIGHTS_FILE
    gone = EntryPoint("gone", "no_such_module_at_all:Net", "agegen.backbones")
    assert locate_file(replace(plugin, entry_point=gone), WEIGHTS_FILE) is None


@pytest.mark.usefixtures("shipped")
def test_predict_uses_the_shipped_weights(agegen):
    done = agegen("predict", "--demo", "--jsonl", "-")
    assert json.loads(done.stdout)["status"] == "ok"
    assert done.exit_code == 0


@pytest.mark.usefixtures("shipped")
def test_shipped_weights_know_their_own_split(agegen, trained_run, faces_folder):
    """Evaluated without the run's folder, on the same data, they give the run's own test metrics."""
    own = json.loads((trained_run / "eval.json").read_text())
    report = json.loads(agegen("eval", "--model", "scratch", "--data", "demo", "--json", "-").stdout)
    assert report["n"] == own["n"]
    # The weights are in half precision.
    assert report["age"]["mae"] == pytest.approx(own["age"]["mae"], abs=0.05)
    done = agegen("eval", "--model", "scratch", "--data", "demo", "--split", "all", "--json", "-")
    assert "in the model's training split" in done.stderr
    done = agegen("eval", "--model", "scratch", "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(done.stdout)["n"] == 60
    assert "can't be told" in done.stderr
    done = agegen("eval", "--model", "scratch", "--data", faces_folder)
    assert done.exit_code == 1
    assert "--split all" in done.stderr


@pytest.mark.usefixtures("shipped")
def test_without_a_run_the_shipped_weights_are_evaluated_on_the_data_given(agegen, faces_folder):
    done = agegen("eval", "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(done.stdout)["n"] == 60
    assert "there is no run under runs/: these are the weights that ship" in done.stderr
    assert "no finished run under runs/" in agegen("eval").stderr


@pytest.mark.usefixtures("shipped")
def test_models_show_the_licence_and_the_card(agegen):
    listed = json.loads(agegen("models", "--json", "-").stdout)
    scratch = next(model for model in listed if model["name"] == "scratch")
    assert scratch["weights_terms"] == "none: the faces are drawn"
    assert 1e6 < scratch["weights_bytes"] < 3e6
    assert "the faces are drawn" in agegen("models").stdout
    assert agegen("models", "--card", "scratch").stdout.startswith("# Model card: scratch")
    assert "no weights ship for 'vgg16'" in agegen("models", "--card", "vgg16").stderr
