"""``agegen calibrate``: a copy of a model whose intervals hold on one's own faces."""

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
from agegen.model.metadata import read_info
from agegen.predict.estimator import Estimator


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Drawn faces that the drawn run never saw, as files in UTKFace naming."""
    folder = tmp_path_factory.mktemp("mine")
    records = draw_records(200)
    for index, row in enumerate(records.frame.itertuples()):
        name = f"{int(row.age)}_{int(row.female)}_0_2017{index:010d}.jpg.chip.png"
        # As negatives they are nobody's near-duplicates.
        cv2.imwrite(str(folder / name), 255 - cv2.cvtColor(records.decode(index), cv2.COLOR_RGB2BGR))
    return folder


def test_the_weights_stay_and_the_intervals_hold(trained_run, mine, tmp_path, agegen):
    out = tmp_path / "mine.safetensors"
    result = agegen("calibrate", trained_run, "--data", mine, "--out", out)
    assert result.exit_code == 0, result.stderr
    # A negative or two may be a near-duplicate of a face that the model was trained on.
    faces = int(re.search(r"90 % intervals fitted to (\d+) faces \(exact ages\); before, they held", result.stdout)[1])
    assert 195 <= faces <= 200
    before, after = load_file(trained_run / "best.safetensors"), load_file(out)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    info = read_info(out)
    assert info.calibration["faces"] == faces
    assert len(info.calibration["scales"]) == 10
    report = tmp_path / "eval.json"
    agegen("eval", out, "--data", mine, "--split", "all", "--json", report)
    assert json.loads(report.read_text())["interval"]["coverage"] >= 0.9
    # The ONNX file beside it has the same intervals.
    picture = next(mine.iterdir())
    faces = [
        Estimator.load(run=out, detector="none", engine=engine).predict(picture)[0] for engine in ("onnx", "torch")
    ]
    assert faces[0].age_low == pytest.approx(faces[1].age_low, abs=0.2)
    original = Estimator.load(run=trained_run, detector="none").predict(picture)[0]
    assert original.age == pytest.approx(faces[0].age, abs=0.2)
    again = agegen("calibrate", trained_run, "--data", mine, "--out", out)
    assert again.exit_code == 1
    assert "is there already; choose another --out" in again.stderr


def test_faces_of_the_training_take_no_part(trained_run, tmp_path):
    result = calibrate_model(CalibrateConfig(("demo",), tmp_path / "c.safetensors", trained_run))
    assert result.faces == 480 - 384
    assert any("384 faces that the model was trained on took no part" in notice for notice in result.notices)


def test_too_few_faces_are_refused(trained_run, mine, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(mine.iterdir())[:30]:
        (few / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"\d+ faces of .* have an age; intervals need about 50"):
        calibrate_model(CalibrateConfig((str(few),), tmp_path / "c.safetensors", trained_run))
    assert not (tmp_path / "c.safetensors").exists()
    with pytest.raises(AgegenError, match=r"give a name that ends in \.safetensors"):
        calibrate_model(CalibrateConfig((str(few),), tmp_path / "c.onnx", trained_run))


def test_how_sure_it_is_grows_with_the_faces():
    """Against simulation: intervals fitted to n faces, and what share of further ones they hold."""
    rng = np.random.default_rng(0)
    for faces in (50, 500):
        scores = np.sort(rng.random((4000, faces)), axis=1)
        # Of evenly drawn scores, the quantile is the share that lies below it.
        held = scores[:, int(np.ceil((faces + 1) * 0.9)) - 1]
        assert bound_coverage(faces) == pytest.approx(np.percentile(held, [2.5, 97.5]), abs=0.01)
    assert bound_coverage(50)[0] < bound_coverage(500)[0] < 0.9 < bound_coverage(500)[1] < bound_coverage(50)[1]
