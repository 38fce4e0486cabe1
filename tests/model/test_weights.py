"""Bundled weights, weights on the Hub, and which checkpoint a command uses."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from serving import serve_hub

from agegen.errors import AgegenError, CheckpointError
from agegen.export.export import export_run
from agegen.model.weights import WEIGHTS_FILE, find_checkpoint, find_weights, list_weights, read_card
from agegen.plugins import find_plugin, list_plugins


@pytest.fixture
def bundled(trained_run, tmp_path, monkeypatch):
    """Bundle the weights of the run on drawn faces with the backbone scratch, and none with any other."""
    folder = tmp_path / "plugin"
    export_run(trained_run, folder / WEIGHTS_FILE)

    def locate(plugin, name):
        path = folder / name
        return path if plugin.name == "scratch" and path.is_file() else None

    monkeypatch.setattr("agegen.model.weights.locate_file", locate)
    monkeypatch.setattr("agegen.model.weights.DEFAULT_MODEL", "scratch")
    monkeypatch.setattr("agegen.cli.models.locate_file", locate)
    return folder / WEIGHTS_FILE


def test_the_checkpoint_of_a_model_or_a_run(trained_run, bundled, tmp_path):
    assert find_checkpoint(None, None) == bundled
    assert find_checkpoint("scratch", None) == bundled
    assert find_checkpoint(None, trained_run) == trained_run / "best.safetensors"
    assert find_checkpoint(None, trained_run / "best.safetensors") == trained_run / "best.safetensors"
    alone = shutil.copy(trained_run / "best.safetensors", tmp_path / "alone.safetensors")
    assert find_checkpoint(None, alone) == alone
    with pytest.raises(AgegenError, match="both given"):
        find_checkpoint("scratch", trained_run)
    with pytest.raises(CheckpointError, match="no run at"):
        find_checkpoint(None, tmp_path / "none")
    with pytest.raises(
        CheckpointError,
        match=r"'vgg16' has no bundled weights\. Models with bundled weights: scratch\. Or give a run\.",
    ):
        find_weights("vgg16")


def write_list(bundled, **entries):
    (bundled.parent / "weights.json").write_text(json.dumps(entries))


def test_a_plugin_can_have_several_weights(bundled):
    other = shutil.copy(bundled, bundled.with_name("other.safetensors"))
    (bundled.parent / "OTHER.md").write_text("# Other\n")
    digest = hashlib.sha256(bundled.read_bytes()).hexdigest()
    write_list(
        bundled,
        other={"source": "other.safetensors", "sha256": digest, "card": "OTHER.md"},
        default={"source": WEIGHTS_FILE},
    )
    assert [weights.name for weights in list_weights(find_plugin("scratch"))] == ["default", "other"]
    assert find_checkpoint("scratch", None) == bundled
    assert find_checkpoint(None, None, "other") == other
    assert read_card("scratch", "other") == "# Other\n"
    with pytest.raises(
        CheckpointError, match=r"'scratch' has no bundled weights 'none'\. Choose one of: default, other"
    ):
        find_weights("scratch", "none")
    with pytest.raises(AgegenError, match="cannot be combined with a run"):
        find_checkpoint(None, bundled, "other")
    other.write_bytes(other.read_bytes() + b" ")
    with pytest.raises(
        CheckpointError, match=r"other\.safetensors is not the file that backbone 'scratch' of agegen .* names"
    ):
        find_weights("scratch", "other")


def test_the_checksums_of_all_bundled_weights_are_stored():
    plugins = [plugin for plugin in list_plugins() if plugin.distribution == "agegen"]
    bundled = {(plugin.name, weights.name): weights for plugin in plugins for weights in list_weights(plugin)}
    assert len(bundled) == 4
    for (model, name), weights in bundled.items():
        assert len(weights.sha256) == 64
        find_weights(model, name)


@pytest.mark.parametrize(
    "entry",
    [
        {"source": "../../etc/passwd"},
        {"source": "hf://a/b@main"},
        {"source": "hf://a/b", "sha256": "0" * 64},
        {},
        "weights.safetensors",
    ],
)
def test_an_invalid_list_of_weights_is_rejected(bundled, entry):
    write_list(bundled, default=entry)
    with pytest.raises(CheckpointError, match=r"backbone 'scratch' of agegen .*weights\.json is invalid"):
        find_weights("scratch")


FETCH = """
import sys
import agegen.model.weights as weights
weights.locate_file = lambda plugin, name: weights.Path(sys.argv[1]) if name == "weights.json" else None
try:
    print(weights.find_weights("scratch").read_bytes()[-8:])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("digest", ["right", "wrong"])
def test_weights_on_the_hub_are_pinned_and_checked(bundled, tmp_path, digest):
    content = bundled.read_bytes()
    found = hashlib.sha256(content).hexdigest() if digest == "right" else "0" * 64
    write_list(bundled, default={"source": "hf://me/mine@abc123", "sha256": found})
    with serve_hub({"/me/mine/resolve/abc123/weights.safetensors": content}) as (address, asked):
        env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        env.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", FETCH, str(bundled.parent / "weights.json")]
        first = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
        assert any("abc123" in path for path in asked)
    if digest == "right":
        assert first == str(content[-8:])
        # From the cache, without a server.
        assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == first
    else:
        assert first.startswith("CheckpointError")
        assert "is not the file that backbone 'scratch'" in first
    env["HF_HOME"], env["HF_HUB_OFFLINE"] = str(tmp_path / "empty"), "1"
    gone = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert gone.startswith("AgegenError weights.safetensors of me/mine is not in the Hugging Face cache")
    assert len(gone.splitlines()) == 1


@pytest.mark.usefixtures("bundled")
def test_predict_uses_the_bundled_weights(agegen):
    done = agegen("predict", "--demo", "--jsonl", "-")
    assert json.loads(done.stdout)["status"] == "ok"
    assert done.exit_code == 0


@pytest.mark.usefixtures("bundled")
def test_bundled_weights_remember_their_split(agegen, trained_run, faces_folder):
    """Evaluated on the same data without the run folder, they reach the test metrics of the run."""
    own = json.loads((trained_run / "eval.json").read_text())
    report = json.loads(agegen("eval", "--model", "scratch", "--data", "demo", "--json", "-").stdout)
    assert report["n"] == own["n"]
    # The weights are stored in half precision.
    assert report["age"]["mae"] == pytest.approx(own["age"]["mae"], abs=0.05)
    done = agegen("eval", "--model", "scratch", "--data", "demo", "--split", "all", "--json", "-")
    assert "in the model's training set" in done.stderr
    done = agegen("eval", "--model", "scratch", "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(done.stdout)["n"] == 60
    assert "of these 60 faces, or near-duplicates of them, were in the model's training set" in done.stderr
    done = agegen("eval", "--model", "scratch", "--data", faces_folder, "--json", "-")
    assert 0 < json.loads(done.stdout)["n"] < 60
    assert "faces left out: the model's training used them" in done.stderr


@pytest.mark.usefixtures("bundled")
def test_without_a_run_the_bundled_weights_are_evaluated(agegen, faces_folder):
    done = agegen("eval", "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(done.stdout)["n"] == 60
    assert "no run found under runs/: using the bundled weights" in done.stderr
    assert "no finished run under runs/" in agegen("eval").stderr


@pytest.mark.usefixtures("bundled")
def test_models_shows_the_licence_and_the_model_card(agegen):
    listed = json.loads(agegen("models", "--json", "-").stdout)
    scratch = next(model for model in listed if model["name"] == "scratch")
    assert scratch["weights_terms"] == "none: the faces are drawn"
    assert 1e6 < scratch["weights_bytes"] < 3e6
    assert "the faces are drawn" in agegen("models").stdout
    assert agegen("models", "--card", "scratch").stdout.startswith("# Model card: scratch")
    assert "'vgg16' has no bundled weights" in agegen("models", "--card", "vgg16").stderr
