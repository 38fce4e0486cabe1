"""``agegen compare``: differences, groups, the verdict, several trainings, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agegen.compare.compare import align_predictions, compare_runs, mark_seen, write_verdict
from agegen.compare.costs import Cost, find_converged_epoch
from agegen.compare.differences import find_group_differences, measure_biases, measure_rows
from agegen.compare.models import choose_models, name_models
from agegen.data.splits import fingerprint_split
from agegen.errors import AgegenError
from agegen.evaluate.config import CompareConfig
from agegen.evaluate.subject import read_training_split
from agegen.runs import RunFolder

NAMES = ("first", "second")


def make_table(error, right, n=400, seed=0):
    """Predictions with age errors of about ``error`` years and a gender accuracy of ``right``."""
    rng = np.random.default_rng(seed)
    ages = np.random.default_rng(9).integers(0, 90, n).astype(float)
    female = np.random.default_rng(8).random(n) < 0.5
    correct = rng.random(n) < right
    return pd.DataFrame(
        {
            "path": [f"{index}.jpg" for index in range(n)],
            "sha256": [f"{index:064d}" for index in range(n)],
            "age": ages,
            "female": female,
            "race": np.where(np.arange(n) % 4 == 0, "Asian", "White"),
            "estimated_age": ages + rng.normal(0, error, n),
            "age_low": 0.0,
            "age_high": 116.0,
            "p_female": np.where(correct == female, 0.9, 0.1),
        }
    )


def test_a_clear_difference_names_the_better_model():
    age, gender = measure_rows(NAMES, {"first": [make_table(10, 0.8)], "second": [make_table(5, 0.95, seed=1)]})
    mae, accuracy = age[0], gender[0]
    assert (mae.name, mae.better) == ("mae", ("second",))
    assert mae.differences[0].value == pytest.approx(mae.values[1].value - mae.values[0].value)
    assert mae.differences[0].high < 0
    assert (accuracy.name, accuracy.better) == ("accuracy", ("second",))
    assert accuracy.differences[0].low > 0


def test_equal_models_show_no_clear_difference_and_pairing_narrows_the_interval():
    table = make_table(6, 0.9)
    shifted = table.assign(estimated_age=table["estimated_age"] + 0.01)
    age, gender = measure_rows(NAMES, {"first": [table], "second": [shifted]})
    assert gender[0].better == (None,)
    difference, single = age[0].differences[0], age[0].values[0]
    assert difference.high - difference.low < 0.1 * (single.high - single.low)


def test_groups_are_sorted_by_the_clearest_difference():
    first, second = make_table(5, 0.9), make_table(5, 0.9, seed=1)
    worse = second.assign(
        estimated_age=second["estimated_age"].where(second["race"] != "Asian", second["estimated_age"] + 30)
    )
    found = find_group_differences(NAMES, {"first": first, "second": worse})
    groups = found.rows
    assert found.count == len(groups)
    assert (groups[0].column, groups[0].value, groups[0].metric, groups[0].better) == ("race", "Asian", "mae", "first")
    assert all(group.n >= 30 for group in groups)


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([5.0, 4.0, 3.0, 2.0, 2.0, 2.0, 2.0], 6),
        ([2.0], 1),
        ([3.0, 3.0, 3.0], 1),
        ([5.0, 3.0, 2.0, 2.0, 2.0, 9.0], 6),
    ],
)
def test_converged_epoch(losses, epoch):
    assert find_converged_epoch(np.array(losses)) == epoch


def test_the_verdict_follows_from_the_numbers():
    costs = [
        Cost(10**6, 10**6, 4 * 10**6, 9, 5, 3.0, 12.2, 0.0, 100.0),
        Cost(2 * 10**7, 9 * 10**6, 10**7, 9, 5, 3.0, 30.7, 20.0, None),
    ]
    tables = {"first": make_table(10, 0.9), "second": make_table(5, 0.9, seed=1)}
    age, gender = measure_rows(NAMES, {name: [table] for name, table in tables.items()})
    verdict = write_verdict(NAMES, 400, age, gender, costs)
    assert verdict.startswith(
        "On 400 faces that neither was trained on, this training of second is better at age (MAE "
    )
    assert f"{age[0].values[1].value:.2f} years versus {age[0].values[0].value:.2f} years" in verdict
    assert "gender shows no clear difference" in verdict
    assert "; first trained 1.00M parameters in 12 minutes, second trained" in verdict
    assert " 9.00M parameters in 31 minutes after 20 for its features. This compares one training of each" in verdict
    assert "faces that both were trained on" in write_verdict(NAMES, 400, age, gender, costs, trained=True)


def test_the_verdict_covers_all_models():
    names = (*NAMES, "third")
    tables = {"first": make_table(10, 0.9), "second": make_table(5, 0.9, seed=1), "third": make_table(20, 0.6, seed=2)}
    age, gender = measure_rows(names, {name: [table] for name, table in tables.items()})
    costs = [Cost(10**6, 10**6, 4 * 10**6, 9, 5, 3.0, 12.2, 0.0, 100.0)] * 3
    verdict = write_verdict(names, 400, age, gender, costs)
    years = [f"{value.value:.2f} years" for value in age[0].values]
    shares = [f"{100 * value.value:.1f} %" for value in gender[0].values]
    assert verdict.startswith(
        f"On 400 faces that none of them was trained on, compared to first (MAE {years[0]}, accuracy {shares[0]}): "
        f"second is better at age ({years[1]}) and not clearly different at gender ({shares[1]}); "
        f"third is worse at age ({years[2]}) and worse at gender ({shares[2]}). first trained 1.00M"
    )
    assert verdict.count("trained 1.00M parameters in 12 minutes") == 3
    assert "faces that all were trained on" in write_verdict(names, 400, age, gender, costs, trained=True)
    several = write_verdict(names, 400, age, gender, costs, (2, 3, 4))
    assert "with 2 trainings of first, 3 of second and 4 of third." in several


def test_groups_of_all_models_are_compared_to_the_first():
    tables = {name: make_table(5, 0.9, seed=seed) for seed, name in enumerate((*NAMES, "third"))}
    tables["third"] = tables["third"].assign(estimated_age=tables["third"]["estimated_age"] + 30)
    found = find_group_differences((*NAMES, "third"), tables)
    alone = find_group_differences(NAMES, {name: tables[name] for name in NAMES})
    assert found.count == len(found.rows) == 2 * alone.count
    clear = [row for row in found.rows if row.better]
    assert {row.model for row in clear if row.metric == "mae"} == {"third"}
    # More differences at once need wider intervals.
    pairs = {(row.column, row.value, row.metric): row for row in found.rows if row.model == "second"}
    for row in alone.rows:
        wider = pairs[row.column, row.value, row.metric].difference
        assert wider.high - wider.low > row.difference.high - row.difference.low
        assert wider.value == pytest.approx(row.difference.value)


def test_groups_are_not_clear_by_chance():
    """Two equal models, many groups: at 95 % for each, several would be clear; simultaneously, hardly any is."""
    rng = np.random.default_rng(0)
    clear = 0
    for seed in range(10):
        first, second = (make_table(8, 0.9, seed=2 * seed + side) for side in (0, 1))
        places = rng.integers(0, 10, len(first)).astype(str)
        tables = {"first": first.assign(place=places), "second": second.assign(place=places)}
        clear += any(row.better for row in find_group_differences(NAMES, tables).rows)
    assert clear <= 3


def test_the_bias_of_each_model_is_measured_by_true_age():
    table = make_table(np.zeros(400), np.ones(400))
    table["estimated_age"] = table["age"] + np.where(table["age"] < 20, 7.0, -3.0)
    rows = measure_biases({"a": table, "b": table.assign(estimated_age=table["age"])})
    assert sum(row.n for row in rows) <= 400
    for row in rows:
        young = int(row.band.split("–")[0]) < 20
        assert row.values[0].value == pytest.approx(7.0 if young else -3.0)
        assert row.values[1].value == pytest.approx(0.0)
    assert {int(row.band.split("–")[0]) < 20 for row in rows} == {True, False}


@pytest.fixture
def two_runs(trained_run, tmp_path):
    copies = [tmp_path / "runs" / name for name in ("one", "two")]
    for copy in copies:
        shutil.copytree(trained_run, copy)
    return [str(copy) for copy in copies]


def test_runs_of_one_backbone_are_named_by_their_folders(two_runs):
    result = compare_runs(CompareConfig(tuple(two_runs)))
    assert result.names == ("one", "two")
    assert all(row.better == (None,) for row in (*result.age, *result.gender))
    assert result.costs[0].parameters == result.costs[0].trainable > 950_000
    assert result.costs[0].images_per_second > 0
    json.dumps(result.to_json(), allow_nan=False)
    assert name_models(choose_models(["compact", two_runs[0]])) == ("compact", "scratch")
    assert name_models(choose_models(["scratch", *two_runs])) == ("scratch", "one", "two")


def test_only_faces_that_no_training_has_seen_are_compared(two_runs):
    runs = [RunFolder(Path(path)) for path in two_runs]
    tables = [pd.read_parquet(run.predictions) for run in runs]
    split = pd.read_csv(runs[1].split)
    moved = tables[0]["sha256"].iloc[:5]
    split.loc[split["sha256"].isin(moved), "split"] = "train"
    split.to_csv(runs[1].split, index=False)
    record = json.loads((runs[1].path / "run.json").read_text())
    record["data"]["fingerprint"] = fingerprint_split(split)
    (runs[1].path / "run.json").write_text(json.dumps(record))
    splits = [read_training_split(run) for run in runs]
    tables = [mark_seen(table, own, splits) for table, own in zip(tables, splits, strict=True)]
    aligned, whole = align_predictions(NAMES, choose_models(tuple(two_runs)), tables, "test")
    assert not set(aligned["first"][0]["sha256"]) & set(moved)
    assert len(aligned["first"][0]) == len(tables[0]) - 5
    assert not whole
    assert compare_runs(CompareConfig(tuple(two_runs))).source == "the common test faces"


def test_what_cannot_be_compared_is_an_error(two_runs):
    runs = [RunFolder(Path(path)) for path in two_runs]
    tables = [pd.read_parquet(run.predictions).assign(seen=False) for run in runs]
    other = tables[1].assign(sha256="x" + tables[1]["sha256"])
    models = choose_models(tuple(two_runs))
    with pytest.raises(AgegenError, match=r"only 0 faces are in every test set \(first 48, second 48\)"):
        align_predictions(NAMES, models, [tables[0], other], "test")
    with pytest.raises(AgegenError, match="the same faces have different labels"):
        align_predictions(NAMES, models, [tables[0], tables[1].assign(age=3.0)], "test")
    with pytest.raises(AgegenError, match="at least two different finished runs"):
        choose_models((two_runs[0], two_runs[0]))
    record = runs[0].read()
    runs[0].write({**record, "finished": None})
    with pytest.raises(AgegenError, match="is not finished"):
        choose_models(tuple(two_runs))


def test_models_without_ages_are_compared_by_gender(two_runs):
    tables = [pd.read_parquet(RunFolder(Path(path)).predictions).assign(seen=False) for path in two_runs]
    tables[1]["estimated_age"] = float("nan")
    aligned, _ = align_predictions(NAMES, choose_models(tuple(two_runs)), tables, "test")
    assert all(table["age"].isna().all() for (table,) in aligned.values())


@pytest.mark.slow
def test_models_are_compared_on_other_data(two_runs, faces_folder):
    result = compare_runs(CompareConfig(tuple(two_runs), data=(str(faces_folder),), split="all"))
    trained = set(pd.read_csv(Path(two_runs[0]) / "split.csv").query("split == 'train'")["sha256"])
    assert 0 < result.n <= 60
    assert not set(result.predictions["one"]["sha256"]) & trained


def test_the_variance_between_trainings_widens_the_intervals():
    """Three trainings that differ by years: the interval of their mean is wider than that of a single one."""
    base = make_table(5, 0.9)
    shifted = [base.assign(estimated_age=base["age"] + (base["estimated_age"] - base["age"]) * by) for by in (1, 2, 3)]
    alone, _ = measure_rows(NAMES, {"first": [shifted[1]], "second": [base]})
    several, _ = measure_rows(NAMES, {"first": shifted, "second": [base] * 3})
    mae = several[0]
    assert mae.values[0].value == pytest.approx(alone[0].values[0].value)
    widths = [row.values[0].high - row.values[0].low for row in (alone[0], mae)]
    assert widths[1] > 3 * widths[0]
    # Equal trainings add no variance.
    assert mae.values[1].high - mae.values[1].low < 2 * (alone[0].values[1].high - alone[0].values[1].low)
    assert mae.better == (None,)


def test_the_verdict_on_several_trainings_is_about_the_models():
    costs = [Cost(10**6, 10**6, 4 * 10**6, 9, 5, 3.0, 12.2, 0.0, 100.0)] * 2
    tables = {"first": [make_table(10, 0.9)] * 2, "second": [make_table(5, 0.9, seed=1)] * 3}
    verdict = write_verdict(NAMES, 400, *measure_rows(NAMES, tables), costs, (2, 3))
    assert "trained on, second is better at age" in verdict
    assert "This compares the models, with 2 trainings of first and 3 of second." in verdict
    assert "one training of each" in write_verdict(NAMES, 400, *measure_rows(NAMES, tables), costs, (1, 3))


def test_studies_of_seeds_are_compared(two_runs, trained_run):
    """The folder of a study with two trainings, equal ones here."""
    study = Path(two_runs[0]).parent / "study"
    for seed in range(2):
        shutil.copytree(trained_run, study / f"seed-{seed}")
    (study / "study.json").write_text("{}")
    result = compare_runs(CompareConfig((str(study), two_runs[0])))
    assert result.trainings == (2, 1)
    assert result.names == ("study", "one")
    assert result.to_json()["runs"][0]["trainings"] == 2
    assert any("first training of each model" in notice for notice in result.notices)
    folds = study.parent / "folds"
    folds.mkdir()
    (folds / "study.json").write_text("{}")
    with pytest.raises(AgegenError, match="has no trainings with several seeds"):
        choose_models((str(folds), two_runs[0]))


@pytest.mark.slow
def test_bundled_weights_are_compared_with_runs(two_runs, faces_folder, agegen):
    """Without a run folder, the costs of training are unknown, and there are no learning curves."""
    names = ("compact", "compact/open", two_runs[0])
    result = compare_runs(CompareConfig(names, data=(str(faces_folder),), split="all"))
    assert result.names == ("compact", "compact/open", "scratch")
    assert list(result.curves) == ["scratch"]
    assert list(result.missing_curves) == ["compact", "compact/open"]
    assert [cost.epochs for cost in result.costs] == [None, None, 2]
    assert result.costs[0].parameters == 923_158
    assert result.costs[0].images_per_second > 0
    assert "compact trained 0.92M parameters, compact/open trained 0.92M parameters, " in result.verdict
    page = Path("page.html")
    done = agegen("compare", *names[:2], "--data", faces_folder, "--split", "all", "--report", page, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert [run["run"] for run in json.loads(done.stdout)["runs"]] == ["compact", "compact/open"]
    assert "minutes of training" not in page.read_text(encoding="utf-8")
    assert "No curves of compact and compact/open: bundled weights" in page.read_text(encoding="utf-8")
    assert "Estimated against true age" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["compact", "scratch"], "compact has no run folder and therefore no test faces. Give --data PATH."),
        (["compact"], "at least two different"),
        (["compact", "compact"], "at least two different"),
        (["compact/closed", "scratch"], "'compact' has no bundled weights 'closed'"),
        (["compact", "runs/none"], "no run at runs/none"),
        (["compact", "hf://nonsense"], "invalid repository name"),
    ],
)
def test_unknown_names_are_errors(names, reason, agegen):
    done = agegen("compare", *names)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
