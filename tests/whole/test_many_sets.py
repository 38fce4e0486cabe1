"""Several datasets, age brackets and missing labels in every command."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agegen.data.loading import load_sources
from agegen.data.splits import read_split

pytestmark = pytest.mark.slow

OPTIONS = ("--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Demo faces with UTKFace names, and others with brackets in FairFace's layout; some genders are missing."""
    from agegen.data.demo import draw_records

    root = tmp_path_factory.mktemp("datasets")
    records = draw_records(300)
    rows = ["file,age,gender,race"]
    for row, face in enumerate(records.frame.itertuples()):
        if row < 150:
            path = root / "exact" / f"{int(face.age)}_{int(face.female)}_{row % 5}_2017{row:010d}.png"
        else:
            path = root / "wide" / "train" / f"{row}.png"
            low = int(face.age) // 10 * 10
            gender = "" if row % 5 == 0 else "Female" if face.female else "Male"
            rows.append(
                f"train/{row}.png,{'more than 70' if low >= 70 else f'{low}-{low + 9}'},{gender},{'ABC'[row % 3]}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(records.read(row))
    (root / "wide" / "fairface_label_train.csv").write_text("\n".join(rows))
    return root / "exact", root / "wide"


@pytest.fixture(scope="module")
def run(datasets, tmp_path_factory, agegen):
    path = tmp_path_factory.mktemp("many") / "run"
    done = agegen("train", "--model", "compact", "--data", datasets[0], "--data", datasets[1], "--out", path, *OPTIONS)
    assert done.exit_code == 0, done.stderr
    return path


def test_a_training_on_both_reports_each(run, datasets):
    report = json.loads((run / "eval.json").read_text())
    assert report["counts"]["age"] > 0 < report["counts"]["bracket"]
    assert report["counts"]["gender"] < report["n"] == report["counts"]["age"] + report["counts"]["bracket"]
    sources = {group["value"]: group for group in report["groups"] if group["column"] == "source"}
    assert set(sources) == {"exact", "wide"}
    assert sources["exact"]["age"]["mae"] is not None
    assert sources["exact"]["bracket"]["in_bracket"] is None
    assert sources["wide"]["age"]["mae"] is None
    assert sources["wide"]["bracket"]["in_bracket"] is not None
    card = (run / "MODEL_CARD.md").read_text()
    assert "exact and wide," in card
    assert "in the bracket" in card
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["source"] == [str(path) for path in datasets]


def test_it_is_evaluated_again_on_its_own_data(run, agegen, tmp_path):
    done = agegen("eval", run, "--json", "-")
    assert json.loads(done.stdout) == json.loads((run / "eval.json").read_text())
    shown = agegen("eval", run).stdout
    assert "age bracket" in shown
    assert "in bracket" in shown


def test_it_resumes_after_a_kill(run, datasets, tmp_path, agegen):
    """Without a saved state, as if killed in the first batch; the split and the crops are those of the run."""
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "finished": None}))
    done = agegen("train", "--resume", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert (
        json.loads((tmp_path / "run" / "eval.json").read_text())["age"]
        == json.loads((run / "eval.json").read_text())["age"]
    )
    wrong = agegen("train", "--resume", tmp_path / "run", "--data", datasets[0])
    assert wrong.exit_code == 1


def test_brackets_alone_choose_the_epoch_and_the_intervals(datasets, tmp_path, agegen):
    done = agegen("train", "--model", "compact", "--data", datasets[1], "--out", tmp_path / "run", *OPTIONS)
    assert done.exit_code == 0, done.stderr
    assert "val in bracket" in done.stdout
    assert "val MAE" not in done.stdout
    assert "(brackets of ages)" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    epochs = pd.read_csv(tmp_path / "run" / "epochs.csv")
    assert np.isnan(epochs["val_mae"]).all()


@pytest.mark.usefixtures("random_vgg16")
def test_a_frozen_backbone_also_learns_from_brackets(datasets, tmp_path, agegen):
    arguments = ("--data", datasets[0], "--data", datasets[1], "--cache-dir", tmp_path / "cache", *OPTIONS)
    done = agegen("train", "--model", "vgg16", "--out", tmp_path / "run", *arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert report["bracket"]["in_bracket"] is not None


def test_models_are_compared_by_dataset(run, datasets, tmp_path, agegen):
    for name in ("one", "two"):
        shutil.copytree(run, tmp_path / name)
    fresh = tmp_path / "fresh"
    for number, folder in enumerate(datasets):
        records = load_sources((str(folder),))
        (fresh / str(number)).mkdir(parents=True)
        rows = ["path,age,gender"]
        for row in range(len(records)):
            content = np.ascontiguousarray(records.decode(row)[::-1])
            Image.fromarray(content).save(fresh / str(number) / f"{row}.png")
            low, high = records.labels.low[row], records.labels.high[row]
            age = f"{low:g}" if low == high else f"{low:g}-{high:g}"
            female = records.labels.female[row]
            rows.append(f"{row}.png,{age},{'' if female != female else 'f' if female else 'm'}")
        (fresh / str(number) / "labels.csv").write_text("\n".join(rows))
    both = ("--data", fresh / "0", "--data", fresh / "1", "--split", "all")
    done = agegen("compare", tmp_path / "one", tmp_path / "two", *both, "--json", tmp_path / "c.json")
    assert done.exit_code == 0, done.stderr
    assert "Table 4: by dataset" in done.stdout
    content = json.loads((tmp_path / "c.json").read_text())
    assert [row["source"] for row in content["sources"]] == ["0", "1"]
    assert content["groups_looked_at"] > 0
    assert {row["metric"] for row in content["age"]} >= {"mae", "in_bracket"}


def test_the_check_counts_every_kind_of_label(datasets, agegen):
    done = agegen("data", "check", *datasets, "--json", "-")
    content = json.loads(done.stdout)
    assert content["faces"] == 300
    groups = {(group["column"], group["value"]): group["n"] for group in content["groups"]}
    assert groups["source", "wide"] == 150
    assert groups["age_band", "70–116"] > 0
    assert groups["gender", "female"] + groups["gender", "male"] == 300 - 30


def test_the_split_of_a_weighted_dataset_is_the_same(run, datasets, tmp_path, agegen):
    arguments = ("--data", datasets[0], "--data", f"{datasets[1]}::0.5", "--out", tmp_path / "run", *OPTIONS)
    assert agegen("train", "--model", "compact", *arguments).exit_code == 0
    first, second = (read_split(path / "split.csv") for path in (run, tmp_path / "run"))
    assert first.equals(second)


def test_starting_from_trained_weights(run, datasets, tmp_path, agegen):
    arguments = ("--data", datasets[0], "--data", datasets[1], *OPTIONS)
    done = agegen("train", "--model", "compact", "--init", run, "--out", tmp_path / "more", *arguments)
    assert done.exit_code == 0, done.stderr
    assert "starting from the weights of" in done.stderr
    assert "were trained on" not in done.stderr
    record = json.loads((tmp_path / "more" / "run.json").read_text())
    assert record["settings"]["lr"] == pytest.approx(1e-3)
    assert record["start"]["seen"] == {"val": 0, "test": 0}
    other = agegen("train", "--model", "compact", "--init", run, "--seed", "9", "--out", tmp_path / "seen", *arguments)
    assert "metrics on these faces are optimistic" in other.stderr
    wrong = agegen("train", "--model", "scratch", "--init", run, "--out", tmp_path / "wrong", *arguments)
    assert wrong.exit_code == 1
    assert "has weights of 'compact', which do not fit --model scratch" in wrong.stderr
