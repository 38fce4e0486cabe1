"""Training on real faces; requires ../shared."""

import pytest

from agegen.train.config import TrainConfig
from agegen.train.train import train_and_finish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slice_folder(utkface, tmp_path_factory):
    folder = tmp_path_factory.mktemp("utkface")
    for path in sorted(utkface.iterdir())[::100]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.usefixtures("real_vgg16", "quick_training", "two_views")
def test_frozen_vgg16_features_beat_the_baseline_in_twelve_epochs(slice_folder, tmp_path):
    *_, result = train_and_finish(
        TrainConfig("vgg16", (str(slice_folder),), tmp_path / "run", epochs=12, batch_size=32)
    )
    baseline_age, _, baseline_gender = result.evaluation.baseline
    assert result.evaluation.age.mae.value < baseline_age.mae.value
    assert result.evaluation.gender.accuracy.value > baseline_gender.accuracy.value
