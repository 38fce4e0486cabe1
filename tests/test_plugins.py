"""Plugins from other distributions, installed for real into a temporary folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from serving import serve_hub

from agegen.errors import AgegenError, CheckpointError, PluginError
from agegen.export.export import ExportConfig, export_run
from agegen.model.weights import WEIGHTS_FILE, find_checkpoint, find_weights, list_weights, read_card
from agegen.plugins import find_plugin, list_plugins, load_plugin, locate_file

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "1.2.3"
[project.entry-points."agegen.backbones"]
{entries}
[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""
TINY = """
from torch import nn
from agegen.backbone import Backbone, InputSpec, TrainingDefaults

class TinyBackbone(Backbone):
    input_spec = InputSpec(size=16)
    feature_dim = 12
    defaults = TrainingDefaults(epochs=1, lr=1e-3, batch_size=16)

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(images)

class Breaking(TinyBackbone):
    def __init__(self, *, pretrained=True):
        raise RuntimeError("no such\\nlayer")

number = 3
"""


def install(tmp, target, name, entries, code):
    module = name.replace("-", "_")
    source = tmp / name
    (source / module).mkdir(parents=True)
    (source / module / "__init__.py").write_text(code)
    (source / "pyproject.toml").write_text(PYPROJECT.format(name=name, module=module, entries=entries))
    command = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("plugins")
    target = tmp / "site"
    entries = 'tiny = "agegen_tiny:TinyBackbone"\nnumber = "agegen_tiny:number"\nbreaking = "agegen_tiny:Breaking"'
    install(tmp, target, "agegen-tiny", entries, TINY)
    install(tmp, target, "agegen-broken", 'broken = "agegen_broken:Backbone"', "import a_module_that_is_not_there")
    entries = 'scratch = "agegen_rival:Rival"\nleaving = "agegen_rival:Rival"'
    install(tmp, target, "agegen-rival", entries, "raise SystemExit(3)")
    return target


@pytest.fixture
def plugins(target, monkeypatch):
    monkeypatch.syspath_prepend(str(target))
    return {f"{plugin.name}@{plugin.distribution}": plugin for plugin in list_plugins()}


def run_agegen(target, *arguments):
    command = [sys.executable, "-m", "agegen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(target)})


def test_a_strangers_backbone_trains_by_name_beside_broken_ones(target, faces_folder, tmp_path):
    run = tmp_path / "run"
    done = run_agegen(target, "train", "--model", "tiny", "--data", faces_folder, "--out", run, "--workers", "0")
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    assert record["plugin"] == {"distribution": "agegen-tiny", "version": "1.2.3"}
    assert (run / "best.safetensors").is_file()


def test_models_lists_them_all_with_their_problems(target):
    done = run_agegen(target, "models", "--json", "-")
    assert done.returncode == 0, done.stderr
    models = {(model["name"], model["distribution"]): model for model in json.loads(done.stdout)}
    assert models["scratch", "agegen"]["parameters"] == models["scratch", "agegen"]["trainable"]
    assert models["vgg16", "agegen"]["frozen"] is True
    assert models["tiny", "agegen-tiny"]["problem"] is None
    assert "a_module_that_is_not_there" in models["broken", "agegen-broken"]["problem"]
    assert "no such" in models["breaking", "agegen-tiny"]["problem"]
    assert models["scratch", "agegen-rival"]["problem"].startswith("the name is taken by agegen ")
    assert all(model["version"] == "1.2.3" for (_, origin), model in models.items() if origin != "agegen")


def test_a_broken_plugin_is_an_error_only_when_asked_for(target):
    assert run_agegen(target, "--help").returncode == 0
    done = run_agegen(target, "train", "--model", "broken", "--data", "demo")
    assert done.returncode == 1
    assert done.stderr.startswith("error: backbone 'broken' of agegen-broken 1.2.3 can't be loaded")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_names_that_are_taken(plugins):
    assert plugins["scratch@agegen"].taken_by is None
    assert plugins["scratch@agegen-rival"].taken_by.startswith("agegen ")
    assert find_plugin("scratch").distribution == "agegen"
    with pytest.raises(PluginError, match=r"'scratch' of agegen-rival 1\.2\.3: the name is taken by agegen "):
        find_plugin("scratch@agegen-rival")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("broken@agegen-broken", r"'broken' of agegen-broken 1\.2\.3 can't be loaded: ModuleNotFoundError"),
        ("number@agegen-tiny", r"'number' of agegen-tiny 1\.2\.3: agegen_tiny:number is no subclass"),
        ("leaving@agegen-rival", r"'leaving' of agegen-rival 1\.2\.3 can't be loaded: SystemExit: 3"),
    ],
)
def test_what_cannot_load_is_named(plugins, key, message):
    with pytest.raises(PluginError, match=message):
        load_plugin(plugins[key])


def test_unknown_names_list_the_installed_ones():
    with pytest.raises(PluginError, match="no backbone is called 'resnet'; installed: compact, scratch, timm, vgg16"):
        find_plugin("resnet")


@pytest.fixture
def shipped(trained_run, tmp_path, monkeypatch):
    """Let the backbone scratch ship the weights of the drawn run, and no other backbone any."""
    folder = tmp_path / "plugin"
    export_run(ExportConfig(trained_run, folder / WEIGHTS_FILE))

    def locate(plugin, name):
        path = folder / name
        return path if plugin.name == "scratch" and path.is_file() else None

    monkeypatch.setattr("agegen.model.weights.locate_file", locate)
    monkeypatch.setattr("agegen.model.weights.DEFAULT_MODEL", "scratch")
    monkeypatch.setattr("agegen.cli.models.locate_file", locate)
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


def write_list(shipped, **entries):
    (shipped.parent / "weights.json").write_text(json.dumps(entries))


def test_a_plugin_names_several_weights(shipped, monkeypatch):
    other = shutil.copy(shipped, shipped.with_name("other.safetensors"))
    (shipped.parent / "OTHER.md").write_text("# Other\n")
    digest = hashlib.sha256(shipped.read_bytes()).hexdigest()
    write_list(
        shipped,
        other={"source": "other.safetensors", "sha256": digest, "card": "OTHER.md"},
        default={"source": WEIGHTS_FILE},
    )
    assert [weights.name for weights in list_weights(find_plugin("scratch"))] == ["default", "other"]
    assert find_checkpoint("scratch", None) == shipped
    assert find_checkpoint(None, None, "other") == other
    assert read_card("scratch", "other") == "# Other\n"
    with pytest.raises(CheckpointError, match="no weights 'none' ship for 'scratch'; there are default, other"):
        find_weights("scratch", "none")
    with pytest.raises(AgegenError, match="a run has its own"):
        find_checkpoint(None, shipped, "other")
    other.write_bytes(other.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not what backbone 'scratch' of agegen .* ships"):
        find_weights("scratch", "other")


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
def test_a_list_of_weights_that_is_none(shipped, entry):
    write_list(shipped, default=entry)
    with pytest.raises(CheckpointError, match=r"backbone 'scratch' of agegen .*weights\.json can't be used"):
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
def test_weights_on_the_hub_are_pinned_and_checked(shipped, tmp_path, digest):
    content = shipped.read_bytes()
    found = hashlib.sha256(content).hexdigest() if digest == "right" else "0" * 64
    write_list(shipped, default={"source": "hf://me/mine@abc123", "sha256": found})
    with serve_hub({"/me/mine/resolve/abc123/weights.safetensors": content}) as (address, asked):
        env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        env.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", FETCH, str(shipped.parent / "weights.json")]
        first = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
        assert any("abc123" in path for path in asked)
    if digest == "right":
        assert first == str(content[-8:])
        # From the cache now, with no server there.
        assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == first
    else:
        assert first.startswith("CheckpointError")
        assert "is not what backbone 'scratch'" in first
    env["HF_HOME"], env["HF_HUB_OFFLINE"] = str(tmp_path / "empty"), "1"
    gone = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert gone.startswith("AgegenError weights.safetensors of me/mine is not in the Hugging Face cache")
    assert len(gone.splitlines()) == 1


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
    assert "in the model's training set" in done.stderr
    done = agegen("eval", "--model", "scratch", "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(done.stdout)["n"] == 60
    assert "whether the model was trained on some of these faces is unknown" in done.stderr
    done = agegen("eval", "--model", "scratch", "--data", faces_folder)
    assert done.exit_code == 1
    assert "--split all" in done.stderr


@pytest.mark.usefixtures("shipped")
def test_without_a_run_the_shipped_weights_are_evaluated_on_the_data_given(agegen, faces_folder):
    done = agegen("eval", "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(done.stdout)["n"] == 60
    assert "no run found under runs/: using the bundled weights" in done.stderr
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
