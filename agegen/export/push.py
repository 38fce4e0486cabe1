"""``agegen push``: upload a finished run, with its model card, to the Hugging Face Hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.engines.loading import ONNX_SUFFIX
from agegen.errors import AgegenError
from agegen.export.card import list_dataset_names
from agegen.export.export import export_run
from agegen.files import write_text
from agegen.hub import explain_failure, quiet_hub
from agegen.model.weights import CARD_FILE, HUB_CHECKPOINT, parse_repository
from agegen.runs import open_run

# The Hub's identifier of a licence, by words in the terms of the weights; the first match counts.
_LICENSES = (("non-commercial", "other"), ("CC BY 4.0", "cc-by-4.0"))
_TASK = {"type": "image-classification", "name": "Age and gender estimation"}


@dataclass(frozen=True)
class Pushed:
    """An uploaded run: the URL and the hash of its commit, and the value of ``--run`` that loads it."""

    url: str
    commit: str
    name: str


def push_run(run: Path, repository: str, private: bool = False) -> Pushed:
    """Upload a run's weights (float16 safetensors), ONNX file, configuration and model card in one commit.

    Raises:
        AgegenError: the run is not finished, the repository is not OWNER/NAME, or the upload failed.
    """
    repository = parse_repository(repository)
    folder = open_run(run)
    record, report = folder.read(), folder.read_evaluation()
    with explain_errors(repository):
        from huggingface_hub import HfApi

        # Before the export, so that missing permissions or a missing network are reported at once.
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        upload = Path(name)
        write_files(upload, run, record, report, with_onnx=folder.onnx.is_file())
        message = f"{record.get('model', 'model')}, by agegen push"
        with explain_errors(repository):
            done = api.upload_folder(repo_id=repository, folder_path=upload, commit_message=message)
    return Pushed(str(done.commit_url), str(done.oid), f"hf://{repository}@{done.oid}")


def write_files(folder: Path, run: Path, record: dict[str, Any], report: dict[str, Any], with_onnx: bool) -> None:
    """Write the files of the repository: weights, ONNX, ``config.json``, and the model card as ``README.md``."""
    checkpoint = folder / HUB_CHECKPOINT
    export_run(run, checkpoint, checkpoint.with_suffix(ONNX_SUFFIX) if with_onnx else None)
    card = folder / CARD_FILE
    write_text(folder / "README.md", add_front_matter(card.read_text(encoding="utf-8"), record, report))
    card.unlink()
    write_text(folder / "config.json", json.dumps(make_config(record), indent=2) + "\n")


@contextmanager
def explain_errors(repository: str) -> Iterator[None]:
    """Raise the errors of the Hub's client as an :class:`AgegenError` of one line that says what to do."""
    try:
        with quiet_hub():
            yield
    except Exception as error:  # the client raises its own errors, those of its HTTP library, and OSError
        raise AgegenError(
            f"cannot push to {repository} ({explain_failure(error)}). Check the network, and log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error


def make_config(record: dict[str, Any]) -> dict[str, Any]:
    """Return ``config.json``: what describes the model in a run's record, without paths of this machine."""
    return {
        "library_name": "agegen",
        "model": record.get("model"),
        "plugin": record.get("plugin"),
        "settings": record.get("settings"),
        "best": record.get("best"),
    }


def add_front_matter(card: str, record: dict[str, Any], report: dict[str, Any]) -> str:
    """Return a card with the YAML metadata that the Hub reads: licence, datasets, and the metrics of ``eval.json``."""
    from huggingface_hub import EvalResult, ModelCardData

    names = list_dataset_names(record)
    dataset = " + ".join(names)
    model = str(record.get("model", "model"))
    metrics = {
        ("mae", "MAE (years)"): report["age"].get("mae"),
        ("accuracy", "gender accuracy"): report["gender"].get("accuracy"),
        ("in_bracket", "age bracket accuracy"): report.get("bracket", {}).get("in_bracket"),
    }
    results = [
        EvalResult(
            task_type=_TASK["type"],
            task_name=_TASK["name"],
            dataset_type=dataset,
            dataset_name=f"{dataset}, test split",
            metric_type=kind,
            metric_name=title,
            metric_value=value,
        )
        for (kind, title), value in metrics.items()
        if value is not None
    ]
    data = ModelCardData(
        library_name="agegen",
        license=next((license for words, license in _LICENSES if words in card), "other"),
        datasets=names,
        metrics=sorted({kind for kind, _ in metrics}),
        model_name=model,
        eval_results=results,
        tags=["age-estimation", "gender-classification", "face", f"agegen-{model.partition(':')[0]}"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{card}"
