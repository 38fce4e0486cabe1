"""Shared fixtures: drawn faces, the real data if it is available, trained runs, and the command line in-process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
# In CI the real data is required: if it is missing, tests fail instead of being skipped.
REQUIRE_SHARED = os.environ.get("AGEGEN_REQUIRE_SHARED") == "1"


def pin_to_one_core(worker: str) -> None:
    """Pin a worker of pytest-xdist (gw0, gw1, …) and its subprocesses to one core.

    If several workers share their cores, their threads wait for each other longer than they compute.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


# Use a cache that does not exist: the detector that `auto` selects must not depend on the user's downloads.
os.environ.pop("HF_HUB_CACHE", None)
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "no-hugging-face-cache")

# This must run before torch and OpenCV are imported, which count the cores at import.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    pin_to_one_core(os.environ["PYTEST_XDIST_WORKER"])


def require_shared(part: str) -> Path:
    """Return a folder in ../shared; skip the test if it does not exist."""
    path = SHARED / part
    if not path.exists():
        if REQUIRE_SHARED:
            pytest.fail(f"{path} is required here")
        pytest.skip(f"{path} is not available")
    return path


@pytest.fixture(scope="session")
def utkface() -> Path:
    return require_shared("data/utkface")


@pytest.fixture
def real_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the real weights of VGG16 available to timm."""
    hub = require_shared("hf") / "hub"
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the slow parts of a training that have their own tests: ONNX export, curves, landmark statistics."""
    import numpy as np

    from agegen.faces.matching import LandmarkStats

    monkeypatch.setattr("agegen.train.train.export_model", lambda *arguments: None)
    monkeypatch.setattr("agegen.train.train.plot_curves", lambda path, curves: None)
    monkeypatch.setattr(
        "agegen.train.setup.measure_dataset", lambda records: LandmarkStats(0, np.empty((0, 5, 2)), None)
    )


@pytest.fixture
def real_yunet(real_vgg16: None) -> None:
    """Make the weights of the detector yunet available; they are in the same cache."""


@pytest.fixture(scope="session")
def portrait() -> Path:
    """A real photo of one face (512×600, public domain): Grace Hopper at the age of 77."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture
def two_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce VGG16's views of each face to two, the unchanged and the mirrored one, which takes half the time."""
    from dataclasses import replace

    from agegen_vgg16 import VGG16Backbone

    monkeypatch.setattr(VGG16Backbone, "defaults", replace(VGG16Backbone.defaults, views=2))


@pytest.fixture
def random_vgg16(quick_training: None, two_views: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG16 with constant random weights, two views, and quick trainings."""
    import agegen_vgg16
    import torch

    create = agegen_vgg16.create_base

    def create_random(pretrained: bool) -> torch.nn.Module:
        torch.manual_seed(7)
        return create(False)

    monkeypatch.setattr(agegen_vgg16, "create_base", create_random)


@pytest.fixture(autouse=True)
def isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, with its own cache and without the user's default dataset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AGEGEN_DATA", raising=False)


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn faces in files with UTKFace names."""
    return write_faces(tmp_path_factory.mktemp("faces"), 60)


@pytest.fixture(scope="session")
def draw_folder() -> Callable[[Path, int], Path]:
    """Return a function that writes drawn faces in files with UTKFace names: (folder, count) -> folder."""
    return write_faces


@pytest.fixture(scope="session")
def mini_fairface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn faces in FairFace's layout, with brackets of ages; none of them is in ``faces_folder``."""
    from agegen.data.demo import draw_records

    folder = tmp_path_factory.mktemp("sets") / "fairface"
    (folder / "train").mkdir(parents=True)
    records = draw_records(100)
    lines = ["file,age,gender,race,service_test"]
    for row in range(60, 100):
        (folder / "train" / f"{row}.png").write_bytes(records.read(row))
        age, female = records.frame["age"][row], records.frame["female"][row]
        decade = int(age // 10 * 10)
        bracket = "more than 70" if age >= 70 else f"{decade}-{decade + 9}"
        lines.append(f"train/{row}.png,{bracket},{'Female' if female else 'Male'},Indian,True")
    (folder / "fairface_label_train.csv").write_text("\n".join(lines))
    return folder


def write_faces(folder: Path, count: int) -> Path:
    from agegen.data.demo import draw_records

    folder.mkdir(exist_ok=True)
    records = draw_records(count)
    for index, row in enumerate(records.frame.itertuples()):
        name = f"{int(row.age)}_{int(row.female)}_{index % 5}_2017{index:010d}.jpg.chip.png"
        (folder / name).write_bytes(records.read(index))
    return folder


@pytest.fixture(scope="session")
def agegen() -> Callable[..., object]:
    """Return a function that runs the command line in this process and returns typer's result."""
    from typer.testing import CliRunner

    from agegen.cli.app import app

    runner = CliRunner()

    def run(*arguments: object) -> object:
        result = runner.invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `scratch` on drawn faces, two epochs; tests must not change it. All workers share it."""
    from filelock import FileLock

    from agegen.train.config import TrainConfig
    from agegen.train.train import train_and_finish

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    folder.mkdir(exist_ok=True)
    path, done = folder / "scratch", folder / "done"
    with FileLock(folder / "lock"):
        if not done.exists():
            for _ in train_and_finish(TrainConfig("scratch", ("demo",), path, epochs=2, batch_size=32, workers=0)):
                pass
            done.touch()
    return path
