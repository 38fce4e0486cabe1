"""Studies: cross-validation, repeated seeds, and soft labels from the estimates of a cross-validation."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from agegen.backbone import LossSettings
from agegen.data.demo import draw_records
from agegen.data.labels import AGE_CLASSES
from agegen.data.scan import scan_images
from agegen.data.soft_labels import read_soft_labels
from agegen.data.splits import assign_folds, group_faces, make_fold_split, read_split
from agegen.errors import AgegenError, CheckpointError, DataError, TrainingInterrupted
from agegen.evaluate.study import evaluate_study
from agegen.model.loss import Targets, compute_loss, make_age_distribution
from agegen.model.network import Outputs
from agegen.train.config import TrainConfig
from agegen.train.loop import BatchResult, PartStart, StudyResult
from agegen.train.study import StudyConfig, read_study, train_study
from agegen.train.train import train_and_finish

pytestmark = pytest.mark.slow

FOLDS = 3


@pytest.fixture(scope="module")
def quickly():
    """Like quick_training, trainings without curves and ONNX, but for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agegen.train.train.plot_curves", lambda path, curves: None)
        patch.setattr("agegen.train.train.export_model", lambda *arguments: None)
        yield


def make_config(data, out, **options):
    return TrainConfig("scratch", (str(data),), out, epochs=1, batch_size=16, workers=0, **options)


@pytest.fixture(scope="module")
def study(faces_folder, tmp_path_factory, quickly):
    path = tmp_path_factory.mktemp("study") / "folds"
    events = list(train_study(StudyConfig(make_config(faces_folder, path), folds=FOLDS)))
    return path, events


def test_each_face_is_tested_on_once(study, faces_folder):
    path, events = study
    starts = [event for event in events if isinstance(event, PartStart)]
    assert [(start.number, start.count, start.kind) for start in starts] == [(n, FOLDS, "folds") for n in (1, 2, 3)]
    assert isinstance(events[-1], StudyResult)
    splits = [read_split(path / f"fold-{number}" / "split.csv") for number in (1, 2, 3)]
    tested = pd.concat([split["sha256"][split["split"] == "test"] for split in splits])
    assert sorted(tested) == sorted(splits[0]["sha256"])
    for split in splits:
        assert set(split["split"]) == {"train", "val", "test"}
        assert (split.groupby("group")["split"].nunique() == 1).all()


def test_the_summary_averages_the_folds(study):
    path, events = study
    summary = json.loads((path / "folds.json").read_text())
    assert summary == events[-1].summary
    maes = [json.loads((path / f"fold-{n}" / "eval.json").read_text())["age"]["mae"] for n in (1, 2, 3)]
    assert summary["mean"]["mae"] == pytest.approx(np.mean(maes), abs=1e-3)
    assert summary["spread"]["mae"] == pytest.approx(np.std(maes, ddof=1), abs=1e-3)
    assert [part["metrics"]["mae"] for part in summary["parts"]] == maes


def test_out_of_fold_estimates_are_complete_and_evaluated_together(study, agegen):
    path, _ = study
    table = pd.read_parquet(path / "out_of_fold.parquet")
    assert len(table) == 60
    assert sorted(table["fold"].unique()) == [1, 2, 3]
    ages = np.stack(table["distribution"].to_list())
    assert ages.shape == (60, AGE_CLASSES)
    assert ages.sum(axis=1) == pytest.approx(1, abs=1e-3)
    assert (ages @ np.arange(AGE_CLASSES)) == pytest.approx(table["estimated_age"], abs=0.02)
    pooled = evaluate_study(path).evaluation
    assert pooled.n == 60
    assert pooled.age.mae.value == pytest.approx((table["estimated_age"] - table["age"]).abs().mean())
    inside = (table["age_low"] <= table["age"]) & (table["age"] <= table["age_high"])
    assert pooled.interval.coverage.value == pytest.approx(inside.mean())
    shown = agegen("eval", path)
    assert shown.exit_code == 0
    assert "On 60 faces, " in shown.stdout
    assert ", out of fold" in shown.stdout
    refused = agegen("eval", path, "--data", "demo")
    assert refused.exit_code == 1
    assert "for other data, give one of its runs" in refused.stderr


def test_an_interrupted_study_is_resumed(study, faces_folder, tmp_path):
    """One fold is finished, one was interrupted, one was not started: the last two train, with the same results."""
    whole, _ = study
    path = tmp_path / "study"
    config = StudyConfig(make_config(faces_folder, path), folds=FOLDS)
    batches = 0

    def stop_in_the_second():
        return batches > 3

    with pytest.raises(TrainingInterrupted, match=rf"fold-2 of 3 folds; resume with `agegen train --resume {path}`"):
        for event in train_study(config, should_stop=stop_in_the_second):
            batches += isinstance(event, BatchResult)
    assert not (path / "folds.json").exists()
    with pytest.raises(CheckpointError, match="its folds are not all trained"):
        evaluate_study(path)
    events = list(train_study(read_study(path, {})))
    assert [event.number for event in events if isinstance(event, PartStart)] == [2, 3]
    assert (
        json.loads((path / "folds.json").read_text())["mean"] == json.loads((whole / "folds.json").read_text())["mean"]
    )


def test_a_study_is_resumed_with_its_data_by_any_name(study, faces_folder, monkeypatch):
    whole, _ = study
    monkeypatch.chdir(faces_folder.parent)
    for name in (faces_folder.name, f"./{faces_folder.name}", str(faces_folder)):
        assert read_study(whole, {"data": (name,)}).train.data == (str(faces_folder),)
    with pytest.raises(AgegenError, match="with other options: --data"):
        read_study(whole, {"data": ("demo",)})


def test_folds_can_be_trained_one_by_one(study, faces_folder, tmp_path):
    whole, _ = study
    path = tmp_path / "study"
    for fold in (2, 1, 3):
        events = list(train_study(StudyConfig(make_config(faces_folder, path), folds=FOLDS, fold=fold)))
        assert [event.number for event in events if isinstance(event, PartStart)] == [fold]
        assert isinstance(events[-1], StudyResult) == (fold == 3)
    same = pd.read_parquet(whole / "out_of_fold.parquet")
    assert pd.read_parquet(path / "out_of_fold.parquet").equals(same)
    with pytest.raises(AgegenError, match="is a study with other options"):
        list(train_study(StudyConfig(make_config(faces_folder, path, seed=1), folds=FOLDS)))
    with pytest.raises(AgegenError, match=r"with other options: --lr 3\.0"):
        read_study(path, {"lr": 3.0})
    with pytest.raises(AgegenError, match="--fold must be between 1 and 3"):
        list(train_study(StudyConfig(make_config(faces_folder, path), folds=FOLDS, fold=4)))


@pytest.mark.usefixtures("quickly")
def test_seeds_share_a_split(faces_folder, tmp_path):
    path = tmp_path / "seeds"
    events = list(train_study(StudyConfig(make_config(faces_folder, path), seeds=2)))
    first, second = (read_split(path / f"seed-{seed}" / "split.csv") for seed in (0, 1))
    assert first.equals(second)
    records = [json.loads((path / f"seed-{seed}" / "run.json").read_text()) for seed in (0, 1)]
    assert [record["seed"] for record in records] == [0, 1]
    assert events[-1].summary["spread"]["mae"] > 0
    assert json.loads((path / "seeds.json").read_text())["count"] == 2
    assert not (path / "out_of_fold.parquet").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", 3, "--seeds", 2], "choose --folds K or --seeds N"),
        (["--fold", 2], "--fold I requires --folds K"),
        (["--folds", 1], "'--folds'"),
    ],
)
def test_invalid_numbers_are_one_line(agegen, faces_folder, options, message):
    result = agegen("train", "--model", "scratch", "--data", faces_folder, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())


def test_folds_are_balanced_and_leave_the_rest_unused():
    scan = scan_images(draw_records(120))
    groups = group_faces(scan)
    inside = np.arange(120) % 4 > 0
    folds = assign_folds(scan, groups, 5, 0, inside)
    assert (folds[~inside] == 0).all()
    counts = np.bincount(folds[inside], minlength=6)[1:]
    assert counts.min() >= 16
    names = np.array(make_fold_split(scan, groups, folds, 2, 0))
    assert (names[~inside] == "unused").all()
    assert ((names == "test") == (folds == 2)).all()
    with pytest.raises(DataError, match="200 folds require at least 200 groups"):
        assign_folds(scan, groups, 200, 0)


@pytest.mark.usefixtures("quickly")
def test_soft_labels_of_test_faces_are_refused_and_others_used(study, faces_folder, tmp_path):
    """Folds of a training split can teach its training; teachers of folds of all faces saw its test split."""
    whole, _ = study
    split = whole / "fold-1" / "split.csv"
    with pytest.raises(DataError, match="the teachers saw 24 validation or test faces of this training"):
        next(
            train_and_finish(
                make_config(
                    faces_folder, tmp_path / "no", soft_labels=(str(whole / "out_of_fold.parquet"),), split_file=split
                )
            )
        )
    path = tmp_path / "teachers"
    list(train_study(StudyConfig(make_config(faces_folder, path, split_file=split), folds=2)))
    estimates = str(path / "out_of_fold.parquet")
    held = read_split(split).query("split == 'train'")
    assert sorted(pd.read_parquet(estimates)["sha256"]) == sorted(held["sha256"])
    run = tmp_path / "distilled"
    for _ in train_and_finish(
        make_config(faces_folder, run, soft_labels=(estimates,), soft_weight=0.8, split_file=split)
    ):
        pass
    record = json.loads((run / "run.json").read_text())
    assert record["teachers"] == [f"scratch (agegen {record['plugin']['version']}), 2 folds, {len(held)} faces"]
    assert record["settings"]["loss"]["soft"] == 0.8
    assert f"--soft-labels {estimates} --soft-weight 0.8" in record["command"]
    assert "distilled from scratch" in (run / "MODEL_CARD.md").read_text()


def write_soft(path, **columns):
    table = {"sha256": ["a", "b"], "p_female": [0.25, 0.5], "distribution": [[1.0] * AGE_CLASSES] * 2}
    pd.DataFrame(table | columns).to_parquet(path)
    return str(path)


def test_several_teachers_are_averaged(tmp_path):
    first = write_soft(tmp_path / "1.parquet")
    second = write_soft(tmp_path / "2.parquet", sha256=["b", "c"], p_female=[1.0, 0.0])
    teaching = read_soft_labels([first, second], ["c", "b", "x"])
    assert teaching.labels.female[:2] == pytest.approx([0.0, 0.75])
    assert teaching.known.tolist() == [True, True, False]
    assert teaching.labels.ages[:2].sum(axis=1) == pytest.approx(1)
    assert np.isnan(teaching.labels.ages[2]).all()
    assert teaching.teachers == ("1.parquet, 1 face", "2.parquet, 2 faces")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"p_female": [2.0, 0.5]}, "distributions of 117 ages"),
        ({"distribution": [[1.0] * 3] * 2}, "distributions of 117 ages"),
        ({"distribution": [[-1.0] * AGE_CLASSES] * 2}, "distributions of 117 ages"),
        ({"distribution": [[float("nan")] * AGE_CLASSES] * 2}, "distributions of 117 ages"),
        ({"sha256": ["x", "y"]}, "contains none of these faces"),
        ({"p_female": ["much", "little"]}, "cannot read soft labels"),
    ],
)
def test_files_with_invalid_soft_labels_are_one_line(tmp_path, columns, message):
    path = write_soft(tmp_path / "soft.parquet", **columns)
    with pytest.raises(DataError, match=message) as caught:
        read_soft_labels([path], ["a", "b"])
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_not_parquet_are_one_line(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    for path in (tmp_path / "x.parquet", tmp_path / "gone.parquet", tmp_path):
        with pytest.raises(DataError, match=r"soft labels|is a folder"):
            read_soft_labels([str(path)], ["a"])
    pq.write_table(pq.read_table(write_soft(tmp_path / "s.parquet")).drop_columns(["p_female"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="does not contain soft labels: it lacks the column"):
        read_soft_labels([str(tmp_path / "t.parquet")], ["a"])


def test_the_soft_weight_mixes_labels_and_teachers():
    logits = torch.randn(3, AGE_CLASSES, requires_grad=True)
    outputs = Outputs(logits, torch.randn(3, requires_grad=True))
    nan = float("nan")
    low, female = torch.tensor([30.0, 30.0, nan]), torch.tensor([1.0, nan, nan])
    soft = torch.stack([make_age_distribution(torch.tensor([age]))[0] for age in (50.0, 50.0, 50.0)])
    soft[1] = nan
    soft_female = torch.tensor([0.5, nan, 0.25])

    def measure(share, rows):
        part = Outputs(*(value[rows] for value in outputs))
        targets = Targets(*(value[rows] for value in (low, low, female, soft, soft_female)))
        return compute_loss(part, targets, LossSettings(soft=share))

    own = compute_loss(Outputs(logits[:1], outputs.gender_logit[:1]), Targets(low[:1], low[:1], female[:1])).detach()
    assert measure(0.0, slice(0, 1)).detach() == pytest.approx(own.item(), rel=1e-5)
    soft_only = measure(1.0, slice(0, 1)).detach()
    assert measure(0.25, slice(0, 1)).detach() == pytest.approx(0.75 * own.item() + 0.25 * soft_only.item(), rel=1e-4)
    # Without labels the teacher has all the weight, without a teacher the label.
    assert measure(0.25, slice(2, 3)).detach() == pytest.approx(measure(0.75, slice(2, 3)).item())
    assert measure(0.25, slice(1, 2)).detach() == pytest.approx(measure(0.75, slice(1, 2)).item())
    total = measure(0.5, slice(0, 3))
    total.backward()
    assert torch.isfinite(logits.grad).all()
    best = compute_loss(
        Outputs(soft[2:].clamp(min=1e-9).log(), torch.tensor([0.25]).logit()),
        Targets(low[2:], low[2:], female[2:], soft[2:], soft_female[2:]),
    )
    assert best < measure(0.5, slice(2, 3))


def test_a_damaged_study_is_one_line(study, tmp_path):
    whole, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "study.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"study\.json is damaged"):
        read_study(copy, {})
