"""What an evaluation says of its data: what the training saw, groups, swapped genders, photographs, baselines."""

from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from agegen.data.labels import choose_groups, find_baseline
from agegen.data.loading import load_sources
from agegen.data.manifests import ReadOptions
from agegen.data.scan import scan_images
from agegen.data.soft_labels import read_soft_labels
from agegen.data.splits import count_leaking_groups, find_seen, read_split, split_scan
from agegen.evaluate.estimates import write_predictions
from agegen.evaluate.evaluate import EvalConfig, describe_swap, evaluate_run, read_baseline
from agegen.model.checkpoint import load_checkpoint, save_checkpoint
from agegen.train.config import TrainConfig
from agegen.train.train import train_run


def write_manifest(folder, records, **columns):
    """Write the drawn faces of some records as files, with a manifest of their labels."""
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
    """The faces of the drawn run, and which of them it was trained on."""
    records = load_sources(("demo",))
    split = read_split(trained_run / "split.csv").set_index("path").loc[records.frame["path"]]
    return records, (split["split"] == "train").to_numpy()


def test_a_leak_is_told_where_the_data_brings_its_own_split(trained_run, trained_on, tmp_path):
    """Data with a column of splits of its own used to hide that its test faces had been trained on."""
    records, trained = trained_on
    rows = np.concatenate([np.flatnonzero(trained)[:30], np.flatnonzero(~trained)[:30]])
    part = records.select(np.isin(np.arange(len(records)), rows))
    data = write_manifest(tmp_path / "other", part, split=["test"] * 60)
    # One face that the run doesn't know, so that its own split can't be taken.
    unknown = tmp_path / "other" / f"{np.flatnonzero(~trained[np.sort(rows)])[0]}.png"
    cv2.imwrite(str(unknown), cv2.imread(str(unknown))[:, ::-1])
    result = evaluate_run(EvalConfig(trained_run, data=(data,)))
    assert result.seen.sum() == 30
    assert any("30 of these 60 pictures, or near-duplicates of them" in notice for notice in result.notices)


def test_near_duplicates_of_training_faces_count(trained_run, trained_on, tmp_path):
    records, trained = trained_on
    rows = np.flatnonzero(trained)[:40]
    data = write_manifest(tmp_path / "other", records.select(np.isin(np.arange(len(records)), rows)))
    for path in (tmp_path / "other").glob("*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (110, 110)))
    result = evaluate_run(EvalConfig(trained_run, data=(data,), split="all"))
    assert result.seen.all()
    split = read_split(trained_run / "split.csv").drop(columns="hash")
    scan = scan_images(load_sources((data,)))
    assert not find_seen(split, scan.sha256, scan.hashes).any()


def test_validation_flatters_and_that_is_said(trained_run):
    told = {split: " ".join(evaluate_run(EvalConfig(trained_run, split=split)).notices) for split in ("val", "test")}
    assert "numbers on it flatter" in told["val"]
    assert "flatter" not in told["test"]


def test_columns_of_ids_and_scores_are_no_groups(trained_run, trained_on, tmp_path):
    records = trained_on[0].select(np.arange(len(trained_on[0])) < 120)
    unique = [str(number) for number in range(120)]
    data = write_manifest(
        tmp_path / "other", records, person=list("ab") * 60, score=unique, place=list("xyz") * 40, stamp=unique
    )
    result = evaluate_run(EvalConfig(trained_run, data=(data,), split="all"))
    assert {group.column for group in result.evaluation.groups} == {"age_band", "gender", "place", "estimated_age"}
    assert any("no groups are made of person, score, stamp" in notice for notice in result.notices)
    assert choose_groups(pd.DataFrame({"a": range(200), "b": [0, 1] * 100}), ["a", "b"]) == (["b"], ["a"])


def test_swapped_genders_are_noticed():
    assert "look swapped: only 6.7% of 60 are right" in describe_swap(4 / 60, 60)
    assert describe_swap(0.4, 500) is None
    assert describe_swap(0.0, 10) is None


def test_a_checkpoint_without_a_baseline_is_evaluated_beside_the_datas_own(trained_run, tmp_path, trained_on):
    info, model = load_checkpoint(trained_run / "best.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_checkpoint(bare, model, replace(info, training={}))
    scan = scan_images(trained_on[0])
    assert read_baseline(load_checkpoint(bare)[0], scan) == find_baseline(scan.records.frame)


def test_persons_stay_on_one_side(trained_on):
    records = trained_on[0].select(np.arange(len(trained_on[0])) < 200)
    persons = [f"p{number // 4}" for number in range(200)]
    named = replace(records, frame=records.frame.assign(person=persons))
    split = split_scan(scan_images(named), seed=1)
    assert split.groupby(np.array(persons))["split"].nunique().max() == 1
    assert count_leaking_groups(split) == 0
    torn = split_scan(scan_images(records), seed=1)
    assert torn.groupby(np.array(persons))["split"].nunique().max() > 1


def test_nameless_persons_are_one_each(trained_on):
    records = trained_on[0].select(np.arange(len(trained_on[0])) < 200)
    named = replace(records, frame=records.frame.assign(identity=[""] * 199 + ["x"]))
    assert split_scan(scan_images(named), seed=1)["group"].nunique() > 150


def test_photographs_are_told_and_a_detector_helps(utkface, tmp_path):
    """Faces somewhere in larger pictures: on them as they are the model guesses, on their crops it is right."""
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


def test_brackets_and_sources_are_reported(trained_run, trained_on, tmp_path):
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


def test_a_runs_own_data_is_read_as_the_run_read_it(quick_training, tmp_path):
    """The evaluation used to read ages and codes anew, by the defaults."""
    records = load_sources(("demo",))
    records = records.select(np.arange(len(records)) < 60)
    data = write_manifest(tmp_path / "other", records, real=records.frame["age"])
    table = pd.read_csv(data)
    table.assign(age=7, gender=records.frame["female"].map({True: 1, False: 2})).to_csv(data, index=False)
    run = tmp_path / "run"
    options = {"age_column": "real", "gender_codes": "female,male"}
    for _ in train_run(TrainConfig("scratch", (data,), run, epochs=1, workers=0, **options)):
        pass
    kept = pd.read_parquet(run / "predictions.parquet")
    again = evaluate_run(EvalConfig(run)).predictions
    assert list(again["age"]) == list(kept["age"])
    assert list(again["female"]) == list(kept["female"])
    other = evaluate_run(EvalConfig(run, reading=ReadOptions(age_column="age"))).predictions
    assert set(other["age"]) == {7}


def test_what_a_model_estimates_can_teach_another(trained_run, tmp_path):
    result = evaluate_run(EvalConfig(trained_run, split="train", distributions=True))
    path = tmp_path / "teacher.parquet"
    write_predictions(path, result.predictions, result.teacher)
    teaching = read_soft_labels([str(path)], list(result.predictions["sha256"]))
    ages = teaching.labels.ages @ np.arange(117)
    assert np.abs(ages - result.predictions["estimated_age"]).max() < 0.01
    seen = f"trained on {len(result.predictions):,} of them"
    assert seen in teaching.teachers[0]
