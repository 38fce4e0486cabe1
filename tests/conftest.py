"""Shared fixtures: drawn faces on disk, the real data where it is at hand, and a quick command line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
# CI promises the real data; there its absence is an error, elsewhere a reason to skip.
REQUIRE_SHARED = os.environ.get("AGEGEN_REQUIRE_SHARED") == "1"


def keep_to_one_core(worker: str) -> None:
    """Keep a worker of pytest-xdist, gw0 and on, and all that it starts, to a core of its own.

    Threads of several workers on the same cores wait for each other longer than they compute.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


# Which detector `auto` stands for must not depend on what its user has fetched: a cache that isn't there.
os.environ.pop("HF_HUB_CACHE", None)
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "no-hugging-face-cache")

# Before torch and OpenCV are imported, which count the cores then.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    keep_to_one_core(os.environ["PYTEST_XDIST_WORKER"])


def require_shared(part: str) -> Path:
    """Return a folder under ../shared, or skip the test where it isn't there."""
    path = SHARED / part
    if not path.exists():
        if REQUIRE_SHARED:
            pytest.fail(f"{path} is required here")
        pytest.skip(f"{path} is not at hand")
    return path


@pytest.fixture(scope="session")
def utkface() -> Path:
    return require_shared("data/utkface")


@pytest.fixture
def real_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm find VGG16's real weights."""
    hub = require_shared("hf") / "hub"
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings do without what takes seconds and has tests of its own: ONNX file, curves, the crop contract."""
    import numpy as np

    from agegen.faces.matching import LandmarkStats

    monkeypatch.setattr("agegen.train.train.export_best", lambda run, best, crops: iter(()))
    monkeypatch.setattr("agegen.train.train.plot_curves", lambda path, curves: None)
    monkeypatch.setattr("agegen.train.setup.survey_crops", lambda records: LandmarkStats(0, np.empty((0, 5, 2)), None))


@pytest.fixture
def real_yunet(real_vgg16: None) -> None:
    """Let the detector yunet find its weights, which lie in the same cache."""


@pytest.fixture(scope="session")
def portrait() -> Path:
    """A real photograph, 512×600, of one face: Grace Hopper at the age of 77, public domain."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture
def two_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let VGG16 see each face twice only, the plain and the mirrored one: half the time."""
    from dataclasses import replace

    from agegen_vgg16 import VGG16Backbone

    monkeypatch.setattr(VGG16Backbone, "defaults", replace(VGG16Backbone.defaults, views=2))


@pytest.fixture
def random_vgg16(quick_training: None, two_views: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give VGG16 the same random weights each time, two views, and quick trainings."""
    import agegen_vgg16
    import torch

    create = agegen_vgg16.create_base

    def create_random(pretrained: bool) -> torch.nn.Module:
        torch.manual_seed(7)
        return create(False)

    monkeypatch.setattr(agegen_vgg16, "create_base", create_random)


@pytest.fixture(autouse=True)
def isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, with its own cache and without the user's data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AGEGEN_DATA", raising=False)


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn faces as files in UTKFace naming."""
    return write_faces(tmp_path_factory.mktemp("faces"), 60)


@pytest.fixture(scope="session")
def draw_folder() -> Callable[[Path, int], Path]:
    """Write drawn faces in UTKFace naming: (folder, count) -> folder."""
    return write_faces


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
    """Run the command line in this process; returns typer's result (exit_code, stdout, stderr)."""
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
    """A scratch run of two epochs on drawn faces; read only."""
    from agegen.train.config import TrainConfig
    from agegen.train.train import train_run

    path = tmp_path_factory.mktemp("trained") / "scratch"
    for _ in train_run(TrainConfig("scratch", ("demo",), path, epochs=2, batch_size=32, workers=0)):
        pass
    return path
