"""``agegen eval``: overlap with the training set, groups, swapped genders, photos, several datasets."""

from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from agegen.data.labels import choose_groups
from agegen.data.loading import load_sources
from agegen.data.scan import scan_images
from agegen.data.soft_labels import read_soft_labels
from agegen.data.splits import count_leaking_groups, read_split, split_scan
from agegen.evaluate.config import EvalConfig
from agegen.evaluate.estimates import write_predictions
from agegen.evaluate.evaluate import evaluate_run
from agegen.evaluate.evaluation import describe_swapped_genders
from agegen.options import ReadOptions
from agegen.train.config import TrainConfig
from agegen.train.train import train_and_finish


def write_manifest(folder, records, **columns):
    """Write the demo faces of some records as files, with a manifest of their labels."""
    folder.mkdir(exist_ok=True)
    frame = records.frame
    for row in range(len(frame)):
        (folder / f"{row}.png").write_bytes(records.read(row))
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(len(frame))],
            "age": frame["age"],
            "gender": frame["female"].map({True: "f", False: "m"}),
            **columns,
        }
    )
    table.to_csv(folder / "faces.csv", index=False)
    return str(folder / "faces.csv")


@pytest.fixture(scope="module")
def trained_on(trained_run):
    """The faces of the demo run, and which of them it was trained on."""
    records = load_sources(("demo",))
    split = read_split(trained_run / "split.csv").set_index("path").loc[records.frame["path"]]
    return records, (split["split"] == "train").to_numpy()


def test_training_faces_are_left_out_of_the_datas_own_test_set(trained_run, trained_on, tmp_path):
    """A column 'split' in the data does not hide that the model was trained on its test faces."""
    records, trained = trained_on
    rows = np.concatenate([np.flatnonzero(trained)[:30], np.flatnonzero(~trained)[:30]])
    part = records.select(np.isin(np.arange(len(records)), rows))
    data = write_manifest(tmp_path / "other", part, split=["test"] * 60)
    # With one face that the run does not know, the run's split does not cover the data.
    unknown = tmp_path / "other" / f"{np.flatnonzero(~trained[np.sort(rows)])[0]}.png"
    cv2.imwrite(str(unknown), cv2.imread(str(unknown))[:, ::-1])
    result = evaluate_run(EvalConfig(trained_run, data=(data,)))
    left_out = 60 - result.evaluation.n
    assert left_out >= 30
    assert not result.seen.any()
    assert any(f"{left_out} faces left out: the model's training used them" in notice for notice in result.notices)
    everything = evaluate_run(EvalConfig(trained_run, data=(data,), split="all"))
    assert everything.seen.sum() == left_out
    assert any(f"{left_out} of these 60 faces, or near-duplicates of them" in notice for notice in everything.notices)


def test_near_duplicates_of_training_faces_count(trained_run, trained_on, tmp_path):
    records, trained = trained_on
    # Too few to measure how the crops differ from the training's: whether drawings are detected depends on their size.
    rows = np.flatnonzero(trained)[:12]
    data = write_manifest(tmp_path / "other", records.select(np.isin(np.arange(len(records)), rows)))
    for path in (tmp_path / "other").glob("*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (110, 110)))
    result = evaluate_run(EvalConfig(trained_run, data=(data,), split="all"))
    assert result.seen.all()


def test_metrics_on_the_validation_set_are_reported_as_optimistic(trained_run):
    notices = {split: " ".join(evaluate_run(EvalConfig(trained_run, split=split)).notices) for split in ("val", "test")}
    assert "chosen on the validation set: the metrics are optimistic" in notices["val"]
    assert "optimistic" not in notices["test"]


def test_columns_of_ids_and_scores_are_not_groups(trained_run, trained_on, tmp_path):
    records = trained_on[0].select(np.arange(len(trained_on[0])) < 120)
    unique = [str(number) for number in range(120)]
    data = write_manifest(
        tmp_path / "other", records, person=list("ab") * 60, score=unique, place=list("xyz") * 40, stamp=unique
    )
    result = evaluate_run(EvalConfig(trained_run, data=(data,), split="all"))
    assert {group.column for group in result.evaluation.groups} == {"age_band", "gender", "place", "estimated_age"}
    assert any("no metrics by group for the columns person, score, stamp" in notice for notice in result.notices)
    assert choose_groups(pd.DataFrame({"a": range(200), "b": [0, 1] * 100}), ["a", "b"]) == (["b"], ["a"])


def test_swapped_genders_are_reported():
    assert "look swapped: only 6.7 % of 60 agree" in describe_swapped_genders(4 / 60, 60)[0]
    assert describe_swapped_genders(0.4, 500) == []
    assert describe_swapped_genders(0.0, 10) == []


def test_images_of_one_person_are_in_one_split(trained_on):
    records = trained_on[0].select(np.arange(len(trained_on[0])) < 200)
    persons = [f"p{number // 4}" for number in range(200)]
    named = replace(records, frame=records.frame.assign(person=persons))
    split = split_scan(scan_images(named), seed=1)
    assert split.groupby(np.array(persons))["split"].nunique().max() == 1
    assert count_leaking_groups(split) == 0
    unnamed = split_scan(scan_images(records), seed=1)
    assert unnamed.groupby(np.array(persons))["split"].nunique().max() > 1


def test_faces_without_a_name_are_different_persons(trained_on):
    records = trained_on[0].select(np.arange(len(trained_on[0])) < 200)
    named = replace(records, frame=records.frame.assign(identity=[""] * 199 + ["x"]))
    assert split_scan(scan_images(named), seed=1)["group"].nunique() > 150


@pytest.mark.slow
def test_photos_are_reported_and_a_detector_helps(utkface, tmp_path):
    """Faces somewhere in larger images: the model guesses on the whole images, and is accurate on crops."""
    rng = np.random.default_rng(0)
    rows = []
    for number, path in enumerate(sorted(utkface.iterdir())[::500]):
        age, gender = path.name.split("_")[:2]
        canvas = np.full((420, 640, 3), 128, np.uint8)
        side = int(rng.integers(120, 260))
        left, top = int(rng.integers(0, 640 - side)), int(rng.integers(0, 420 - side))
        canvas[top : top + side, left : left + side] = cv2.resize(cv2.imread(str(path)), (side, side))
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), canvas)
        rows.append(f"{number}.jpg,{age},{gender}")
    (tmp_path / "photos.csv").write_text("\n".join(["path,age,gender", *rows]))
    config = EvalConfig(model="scratch", data=(str(tmp_path / "photos.csv"),), split="all")
    plain, cropped = evaluate_run(config), evaluate_run(replace(config, detector="mtcnn"))
    assert any("look like uncropped photos, not like aligned face crops" in notice for notice in plain.notices)
    assert not any("look like uncropped photos" in notice for notice in cropped.notices)
    assert cropped.evaluation.age.mae.value < 0.7 * plain.evaluation.age.mae.value


def test_brackets_and_datasets_are_reported(trained_run, trained_on, tmp_path):
    records = trained_on[0]
    first = write_manifest(tmp_path / "exact", records.select(np.arange(len(records)) < 60))
    second = write_manifest(tmp_path / "wide", records.select(np.arange(len(records)) >= 420))
    table = pd.read_csv(second)
    table["age"] = [f"{int(age) // 10 * 10}-{int(age) // 10 * 10 + 9}" for age in table["age"]]
    table["gender"] = ["u" if row % 2 else gender for row, gender in enumerate(table["gender"])]
    table.to_csv(second, index=False)
    result = evaluate_run(EvalConfig(trained_run, data=(first, second), split="all"))
    evaluation = result.evaluation
    assert evaluation.counts == {"age": 60, "bracket": 60, "gender": 90}
    assert 0 <= evaluation.bracket.in_bracket.value <= evaluation.bracket.near_bracket.value <= 1
    sources = {group.value: group for group in evaluation.groups if group.column == "source"}
    assert len(sources) == 2
    assert {np.isnan(group.age.mae.value) for group in sources.values()} == {False, True}


def test_a_runs_own_data_is_read_with_the_runs_options(quick_training, tmp_path):
    records = load_sources(("demo",))
    records = records.select(np.arange(len(records)) < 60)
    data = write_manifest(tmp_path / "other", records, real=records.frame["age"])
    table = pd.read_csv(data)
    table.assign(age=7, gender=records.frame["female"].map({True: 1, False: 2})).to_csv(data, index=False)
    run = tmp_path / "run"
    options = {"age_column": "real", "gender_codes": "female,male"}
    for _ in train_and_finish(TrainConfig("scratch", (data,), run, epochs=1, workers=0, **options)):
        pass
    kept = pd.read_parquet(run / "predictions.parquet")
    again = evaluate_run(EvalConfig(run)).predictions
    assert list(again["age"]) == list(kept["age"])
    assert list(again["female"]) == list(kept["female"])
    other = evaluate_run(EvalConfig(run, reading=ReadOptions(age_column="age"))).predictions
    assert set(other["age"]) == {7}


def test_predictions_are_soft_labels(trained_run, tmp_path):
    result = evaluate_run(EvalConfig(trained_run, split="train", distributions=True))
    path = tmp_path / "teacher.parquet"
    write_predictions(path, result.predictions, result.teacher)
    soft = read_soft_labels([str(path)], list(result.predictions["sha256"]))
    ages = soft.labels.ages @ np.arange(117)
    assert np.abs(ages - result.predictions["estimated_age"]).max() < 0.01
    seen = f"trained on {len(result.predictions):,} of them"
    assert seen in soft.teachers[0]
