"""Plugins from other distributions, installed for real into a temporary folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from agegen.errors import AgegenError, CheckpointError, PluginError
from agegen.export.export import ExportConfig, export_run
from agegen.model.plugins import (
    WEIGHTS_FILE,
    find_checkpoint,
    find_plugin,
    find_weights,
    list_plugins,
    load_plugin,
    locate_file,
)

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
    with pytest.raises(PluginError, match="no backbone is called 'resnet'; installed: compact, scratch, vgg16"):
        find_plugin("resnet")


@pytest.fixture
def shipped(trained_run, tmp_path, monkeypatch):
    """Let the backbone scratch ship the weights of the drawn run, and no other backbone any."""
    folder = tmp_path / "plugin"
    export_run(ExportConfig(trained_run, folder / WEIGHTS_FILE))

    def locate(plugin, name):
        path = folder / name
        return path if plugin.name == "scratch" and path.is_file() else None

    monkeypatch.setattr("agegen.model.plugins.locate_file", locate)
    monkeypatch.setattr("agegen.model.plugins.DEFAULT_MODEL", "scratch")
    monkeypatch.setattr("agegen.model.catalog.locate_file", locate)
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
