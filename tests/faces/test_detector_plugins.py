"""Detectors are plugins: agegen's own keep the contract, and others are found, checked and named where they fail."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from agegen.errors import AgegenError, PluginError
from agegen.faces.detection import create_detector, list_detectors
from agegen.faces.mtcnn import MTCNN
from agegen.faces.yunet import YuNet
from agegen.predict.estimator import Estimator
from agegen.testing import check_detector


def test_mtcnn_keeps_the_contract():
    check_detector(MTCNN)


@pytest.mark.usefixtures("real_yunet")
def test_yunet_keeps_the_contract():
    check_detector(YuNet)


class Theirs(MTCNN):
    """A stranger's detector, built on a known one."""

    name = "theirs"


class Backwards(MTCNN):
    def detect(self, image):
        return super().detect(image)[::-1]


class Shifted(MTCNN):
    reference = MTCNN.reference + 0.15


class Painter(MTCNN):
    def detect(self, image):
        found = super().detect(image)
        image[0] = 0
        return found


class Everywhere(MTCNN):
    def detect(self, image):
        landmarks = np.full((5, 2), 1.0)
        return super().detect(image) or [replace(self._example(), landmarks=landmarks)]

    def _example(self):
        from agegen.faces.geometry import DetectedFace

        return DetectedFace((0, 0, 2, 2), np.ones((5, 2)), 0.9)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (Backwards, "the faces are not ordered from left to right"),
        (Shifted, "`reference` does not match its landmarks"),
        (Painter, "it modifies the image"),
        (Everywhere, "it detects a face in a uniform gray image"),
        (type("Nameless", (MTCNN,), {"name": None}), r"Nameless\.name must be a str"),
        (type("Lost", (MTCNN,), {"reference": np.zeros((5, 3))}), r"Lost\.reference must be five landmarks"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_promises_are_told_in_a_line(detector, message):
    with pytest.raises(AssertionError, match=message) as caught:
        check_detector(detector)
    assert len(str(caught.value).splitlines()) == 1


def write_package(folder, body):
    """Write an installed distribution that brings a detector; return its folder for sys.path."""
    (folder / "theirs.py").write_text(body)
    info = folder / "their_detector-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-detector\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[agegen.detectors]\ntheirs = theirs:Theirs\n")
    return folder


GOOD = "from agegen.faces.mtcnn import MTCNN\nclass Theirs(MTCNN):\n    name = 'theirs'\n"


def test_another_packages_detector_is_used(tmp_path, monkeypatch, portrait):
    monkeypatch.syspath_prepend(str(write_package(tmp_path, GOOD)))
    assert list_detectors() == ["mtcnn", "theirs", "yunet"]
    assert create_detector("theirs").name == "theirs"
    (face,) = Estimator.load(detector="theirs").predict(portrait)
    assert face.age > 40


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no licence')", "cannot be loaded: RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "cannot be loaded: SystemExit: 3"),
        ("def Theirs():\n    raise OSError('weights are gone')", "can't be built: OSError: weights are gone"),
        ("class Theirs:\n    name = 'theirs'", r"Theirs\.reference must be five landmarks"),
    ],
)
def test_a_broken_one_is_named_with_its_package(tmp_path, monkeypatch, body, message):
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.syspath_prepend(str(write_package(tmp_path, body)))
    with pytest.raises(PluginError, match=rf"detector 'theirs' of their-detector 2\.1:? .*{message}") as caught:
        create_detector("theirs")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(AgegenError, match="--detector is one of mtcnn, theirs, yunet, none"):
        create_detector("ours")
