"""The model card, and the export of weights that it describes."""

import json
import shutil

import pytest

from agegen.errors import AgegenError, CheckpointError
from agegen.export.card import list_dataset_names, list_limitations, render_card
from agegen.export.export import export_run
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import read_info
from agegen.runs import RunFolder


def test_every_run_has_a_card_with_its_metrics(trained_run):
    card = (trained_run / "MODEL_CARD.md").read_text()
    report = json.loads((trained_run / "eval.json").read_text())
    record = json.loads((trained_run / "run.json").read_text())
    assert card == render_card(RunFolder(trained_run), trained_run / "best.safetensors")
    assert f"| MAE (years) | {report['age']['mae']:.2f} |" in card
    assert record["command"] == "agegen train --model scratch --data demo --epochs 2 --batch-size 32"
    assert record["command"] in card
    for text in (
        "the faces are drawn",
        "must not be used",
        "binary guesses",
        "age_band",
        "split-conformal",
        "## Intended use",
        "## Limitations",
    ):
        assert text in card
    for line in card.splitlines():
        assert not line.startswith("| |") or set(line) <= set("| -")
        assert "None" not in line and "nan" not in line.split()


def test_names_of_datasets_have_no_weight():
    assert list_dataset_names({"data": {"source": ["/data/fairface::0.5", "demo"]}}) == ["fairface", "demo"]


def test_exported_weights_are_float16(trained_run, tmp_path):
    target = tmp_path / "out" / "weights.safetensors"
    written, card_path = export_run(trained_run, target, repeats=(trained_run,))
    assert written == target
    assert written.stat().st_size < 0.51 * (trained_run / "best.safetensors").stat().st_size
    info, model = load_checkpoint(target)
    assert info == read_info(trained_run / "best.safetensors")
    whole, half = load_checkpoint(trained_run / "best.safetensors")[1].state_dict(), model.state_dict()
    assert all((half[name] - value).abs().max() < 0.01 * value.abs().max() + 1e-3 for name, value in whole.items())
    card = card_path.read_text()
    assert "weights.safetensors, 2.0 MB" in card
    assert "## Repeated runs" in card
    assert card.count("| scratch | ") == 2


def test_training_time_excludes_feature_extraction(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["seconds"] |= {"total": 4200.0, "preparing": 3900.0, "features": 3840.0}
    (run / "run.json").write_text(json.dumps(record))
    card = render_card(RunFolder(run), run / "best.safetensors")
    assert "Training took 5 min 0 s, after 1 h 4 min for extracting the features once, on" in card
    record["seconds"] |= {"total": 24.0, "preparing": 3.0, "features": 0.2}
    (run / "run.json").write_text(json.dumps(record))
    assert "Training took 21 s, on" in render_card(RunFolder(run), run / "best.safetensors")


def test_only_finished_runs_are_exported(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    with pytest.raises(AgegenError, match=r"must end in \.safetensors"):
        export_run(run, tmp_path / "weights.pt")
    (run / "eval.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"eval.json is damaged: 'n' is missing"):
        export_run(run, tmp_path / "w.safetensors")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "finished": None}))
    with pytest.raises(CheckpointError, match="is not finished"):
        export_run(run, tmp_path / "w.safetensors")


def test_limitations_list_the_worst_groups_that_are_large_enough():
    def make(value, n, mae, accuracy):
        return {"column": "age_band", "value": value, "n": n, "age": {"mae": mae}, "gender": {"accuracy": accuracy}}

    lines = list_limitations([make("0–2", 50, 1, 0.6), make("20–29", 50, 3, 0.99), make("80–116", 5, 30, 0.1)])
    assert lines[0] == "Largest age errors: age_band 20–29 (MAE 3.0 years), age_band 0–2 (MAE 1.0 years)."
    assert lines[1].startswith("Lowest gender accuracy: age_band 0–2 (60.0 %)")
    assert list_limitations([]) == []
