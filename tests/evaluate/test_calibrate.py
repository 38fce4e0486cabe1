"""``agegen calibrate``: a copy of a model whose intervals hold on one's own data."""

import json
import re

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from agegen.data.demo import draw_records
from agegen.errors import AgegenError, DataError
from agegen.evaluate.calibrate import bound_coverage, calibrate_model
from agegen.evaluate.config import CalibrateConfig
from agegen.model.calibration import choose_rank
from agegen.model.metadata import read_info
from agegen.predict.estimator import Estimator


@pytest.fixture(scope="module")
def own_faces(tmp_path_factory):
    """Drawn faces that the demo run has not seen, as files with UTKFace names."""
    folder = tmp_path_factory.mktemp("own")
    records = draw_records(200)
    for index, row in enumerate(records.frame.itertuples()):
        name = f"{int(row.age)}_{int(row.female)}_0_2017{index:010d}.jpg.chip.png"
        # As negatives they are no near-duplicates of the training faces.
        cv2.imwrite(str(folder / name), 255 - cv2.cvtColor(records.decode(index), cv2.COLOR_RGB2BGR))
    return folder


@pytest.mark.slow
def test_weights_are_unchanged_and_intervals_hold(trained_run, own_faces, tmp_path, agegen):
    out = tmp_path / "mine.safetensors"
    result = agegen("calibrate", trained_run, "--data", own_faces, "--out", out)
    assert result.exit_code == 0, result.stderr
    # One or two negatives may be near-duplicates of training faces.
    faces = int(re.search(r"fitted to (\d+) faces \(exact ages\); before, they covered", result.stdout)[1])
    assert 195 <= faces <= 200
    before, after = load_file(trained_run / "best.safetensors"), load_file(out)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    info = read_info(out)
    assert info.calibration["faces"] == faces
    assert len(info.calibration["scales"]) == 10
    report = tmp_path / "eval.json"
    agegen("eval", out, "--data", own_faces, "--split", "all", "--json", report)
    assert json.loads(report.read_text())["interval"]["coverage"] >= 0.9
    # The ONNX file has the same intervals.
    image = next(own_faces.iterdir())
    faces = [Estimator.load(run=out, detector="none", engine=engine).predict(image)[0] for engine in ("onnx", "torch")]
    assert faces[0].age_low == pytest.approx(faces[1].age_low, abs=0.2)
    original = Estimator.load(run=trained_run, detector="none").predict(image)[0]
    assert original.age == pytest.approx(faces[0].age, abs=0.2)
    again = agegen("calibrate", trained_run, "--data", own_faces, "--out", out)
    assert again.exit_code == 1
    assert "already exists. Choose another --out." in again.stderr


def test_training_faces_are_left_out(trained_run, tmp_path):
    result = calibrate_model(CalibrateConfig(("demo",), tmp_path / "c.safetensors", trained_run))
    assert result.faces == 480 - 384
    assert any("384 faces left out: the model was trained on them" in notice for notice in result.notices)


@pytest.mark.slow
def test_a_calibration_that_was_killed_can_be_repeated(trained_run, tmp_path, monkeypatch):
    """The checkpoint appears last: it is what a second call refuses to overwrite."""
    out = tmp_path / "c.safetensors"

    def kill(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agegen.evaluate.calibrate.export_model", kill)
        with pytest.raises(KeyboardInterrupt):
            calibrate_model(CalibrateConfig(("demo",), out, trained_run))
    assert not out.exists()
    result = calibrate_model(CalibrateConfig(("demo",), out, trained_run))
    assert result.written == (out, out.with_suffix(".onnx"))
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"c.safetensors", "c.onnx"}
    with pytest.raises(AgegenError, match="already exists"):
        calibrate_model(CalibrateConfig(("demo",), out, trained_run))


def test_too_few_faces_are_an_error(trained_run, own_faces, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(own_faces.iterdir())[:30]:
        (few / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"calibration requires at least 50 faces with an age; .* has only \d+"):
        calibrate_model(CalibrateConfig((str(few),), tmp_path / "c.safetensors", trained_run))
    assert not (tmp_path / "c.safetensors").exists()
    with pytest.raises(AgegenError, match=r"must end in \.safetensors"):
        calibrate_model(CalibrateConfig((str(few),), tmp_path / "c.onnx", trained_run))


def test_bounds_of_the_coverage_narrow_with_more_faces():
    """Against a simulation: intervals fitted to n faces, and their coverage of further ones."""
    rng = np.random.default_rng(0)
    for faces in (50, 500):
        scores = np.sort(rng.random((4000, faces)), axis=1)
        # For uniform scores, the quantile is the coverage.
        held = scores[:, choose_rank(faces, 0.9) - 1]
        assert bound_coverage(faces) == pytest.approx(np.percentile(held, [2.5, 97.5]), abs=0.01)
        # At least 90 % with 95 % confidence.
        assert np.mean(held >= 0.9) >= 0.94
    assert bound_coverage(50)[0] < bound_coverage(500)[0] < 0.9 < bound_coverage(500)[1] < bound_coverage(50)[1]
