"""Backbone plugins of other distributions, which are really installed, into a temporary folder."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from agegen.errors import PluginError
from agegen.model.checkpoint import describe_model, load_checkpoint, save_checkpoint
from agegen.model.network import AgeGenderModel
from agegen.plugins import BACKBONE_GROUP, find_plugin, list_plugins, load_plugin, locate_file

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

class Tied(TinyBackbone):
    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.other = nn.Linear(12, 12)
        self.other.weight = self.first.weight
        self.part = nn.Linear(12, 6)
        self.part.weight = nn.Parameter(self.first.weight.detach()[:6])

    def forward(self, images):
        features = self.other(self.again(self.first(self.layers(images))))
        return features + self.part(features).repeat(1, 2)

class Lazy(TinyBackbone):
    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.last = nn.LazyLinear(12)

class Tuple(TinyBackbone):
    def forward(self, images):
        return (self.layers(images),)

class Wrong(TinyBackbone):
    feature_dim = 24

class Map(TinyBackbone):
    def forward(self, images):
        return self.layers(images)[:, :, None, None]

class Raising(TinyBackbone):
    def forward(self, images):
        raise ZeroDivisionError("first\\nsecond")

class Exiting(TinyBackbone):
    def __init__(self, *, pretrained=True):
        raise SystemExit(3)

class BadHeads(TinyBackbone):
    def make_heads(self, config):
        raise KeyError("heads")

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
    names = ("Tied", "Lazy", "Tuple", "Wrong", "Map", "Raising", "Exiting", "BadHeads")
    entries += "".join(f'\n{name.lower()} = "agegen_tiny:{name}"' for name in names)
    install(tmp, target, "agegen-tiny", entries, TINY)
    install(tmp, target, "agegen-broken", 'broken = "agegen_broken:Backbone"', "import a_missing_module")
    entries = 'scratch = "agegen_rival:Rival"\nleaving = "agegen_rival:Rival"'
    install(tmp, target, "agegen-rival", entries, "raise SystemExit(3)")
    return target


@pytest.fixture
def plugins(target, monkeypatch):
    monkeypatch.syspath_prepend(str(target))
    return {f"{plugin.name}@{plugin.distribution}": plugin for plugin in list_plugins()}


def run_agegen(target, *arguments):
    command = [sys.executable, "-m", "agegen", *map(str, arguments)]
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.slow
def test_a_third_party_backbone_can_be_trained_although_others_are_broken(target, faces_folder, tmp_path):
    run = tmp_path / "run"
    done = run_agegen(target, "train", "--model", "tiny", "--data", faces_folder, "--out", run, "--workers", "0")
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    assert record["plugin"] == {"distribution": "agegen-tiny", "version": "1.2.3"}
    assert (run / "best.safetensors").is_file()


@pytest.mark.slow
def test_models_lists_every_backbone_and_its_problem(target):
    done = run_agegen(target, "models", "--json", "-")
    assert done.returncode == 0, done.stderr
    models = {(model["name"], model["distribution"]): model for model in json.loads(done.stdout)}
    assert models["scratch", "agegen"]["parameters"] == models["scratch", "agegen"]["trainable"]
    assert models["vgg16", "agegen"]["frozen"] is True
    assert models["tiny", "agegen-tiny"]["problem"] is None
    assert "a_missing_module" in models["broken", "agegen-broken"]["problem"]
    assert "no such" in models["breaking", "agegen-tiny"]["problem"]
    assert models["tied", "agegen-tiny"]["problem"] is None
    assert "Lazy.last.weight has no size (a lazy layer)" in models["lazy", "agegen-tiny"]["problem"]
    assert "cannot be built: SystemExit: 3" in models["exiting", "agegen-tiny"]["problem"]
    assert "cannot be built: KeyError: 'heads'" in models["badheads", "agegen-tiny"]["problem"]
    assert models["scratch", "agegen-rival"]["problem"].startswith("the name is taken by agegen ")
    assert all(model["version"] == "1.2.3" for (_, origin), model in models.items() if origin != "agegen")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lazy", r"Lazy\.last\.weight has no size \(a lazy layer\)\. Give all sizes in __init__\."),
        ("tuple", r"features are a tuple, not a tensor \(N, 12\)"),
        ("wrong", r"features are \(2, 12\), feature_dim says 24"),
        ("map", r"features are \(2, 12, 1, 1\), not \(2, 12\)"),
        ("raising", r"it cannot process images of 16×16 pixels: first"),
        ("exiting", r"cannot be built: SystemExit: 3"),
    ],
)
def test_training_says_in_one_line_how_a_backbone_is_wrong(agegen, plugins, tmp_path, name, message):
    done = agegen("train", "--model", name, "--data", "demo", "--out", tmp_path / "run")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert re.search(rf"^error: backbone '{name}' of agegen-tiny 1\.2\.3:? {message}$", line)
    assert not (tmp_path / "run").exists()


def test_shared_weights_are_stored_once_and_restored(plugins, tmp_path):
    plugin = plugins["tied@agegen-tiny"]
    model = AgeGenderModel(load_plugin(plugin)()).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, describe_model(plugin, model, {}))
    with safe_open(path, framework="pt") as file:
        stored = {name.removeprefix("backbone.") for name in file.keys() if "backbone" in name}  # noqa: SIM118
        metadata = file.metadata()
    assert {"first.weight", "first.bias", "other.bias", "part.weight"} <= stored
    assert not {"again.weight", "again.bias", "other.weight"} & stored
    images = torch.rand(3, 3, 16, 16) * 255
    loaded = load_checkpoint(path)[1]
    assert torch.equal(loaded(images).age_logits, model(images).age_logits)
    assert loaded.backbone.other.weight is loaded.backbone.first.weight
    # Older versions could store such tensors if they were not contiguous, under all names.
    copies = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(copies, path, metadata)
    assert torch.equal(load_checkpoint(path)[1](images).age_logits, model(images).age_logits)


@pytest.mark.slow
def test_a_backbone_with_shared_weights_can_be_trained_and_exported(target, tmp_path):
    words = ["--data", "demo", "--epochs", "2", "--workers", "0", "--out", tmp_path / "run"]
    done = run_agegen(target, "train", "--model", "tied", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.onnx").is_file()
    for words in (["export", tmp_path / "run", "--weights", tmp_path / "w.safetensors"], ["eval", tmp_path / "run"]):
        done = run_agegen(target, *words)
        assert done.returncode == 0, done.stderr


def test_a_broken_plugin_is_an_error_only_if_it_is_used(target):
    assert run_agegen(target, "--help").returncode == 0
    done = run_agegen(target, "train", "--model", "broken", "--data", "demo")
    assert done.returncode == 1
    assert done.stderr.startswith("error: backbone 'broken' of agegen-broken 1.2.3 cannot be loaded")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_name_of_a_builtin_backbone_cannot_be_taken(plugins):
    assert plugins["scratch@agegen"].taken_by is None
    assert plugins["scratch@agegen-rival"].taken_by.startswith("agegen ")
    assert find_plugin("scratch").distribution == "agegen"
    with pytest.raises(PluginError, match=r"'scratch' of agegen-rival 1\.2\.3: the name is taken by agegen "):
        find_plugin("scratch@agegen-rival")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("broken@agegen-broken", r"'broken' of agegen-broken 1\.2\.3 cannot be loaded: ModuleNotFoundError"),
        ("number@agegen-tiny", r"'number' of agegen-tiny 1\.2\.3: agegen_tiny:number is not a subclass"),
        ("leaving@agegen-rival", r"'leaving' of agegen-rival 1\.2\.3 cannot be loaded: SystemExit: 3"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named(plugins, key, message):
    with pytest.raises(PluginError, match=message):
        load_plugin(plugins[key])


def test_the_error_for_an_unknown_name_lists_the_installed_ones():
    with pytest.raises(PluginError, match=r"unknown backbone 'resnet'\. Installed: compact, scratch, timm, vgg16"):
        find_plugin("resnet")


def test_files_are_found_without_importing_the_plugin(tmp_path, monkeypatch):
    (tmp_path / "brittle").mkdir()
    (tmp_path / "brittle" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "brittle" / "weights.safetensors").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = find_plugin("scratch")
    entry = EntryPoint("brittle", "brittle:Net", BACKBONE_GROUP)
    found = locate_file(replace(plugin, entry_point=entry), "weights.safetensors")
    assert found == tmp_path / "brittle" / "weights.safetensors"
    gone = EntryPoint("gone", "no_such_module_at_all:Net", BACKBONE_GROUP)
    assert locate_file(replace(plugin, entry_point=gone), "weights.safetensors") is None
