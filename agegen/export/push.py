"""``agegen push``: a finished run on the Hugging Face Hub, with its card, for others to load by name."""

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
from agegen.export.export import ExportConfig, export_run
from agegen.files import write_text
from agegen.hub import explain_failure, quiet_hub
from agegen.model.weights import CARD_FILE, HUB_CHECKPOINT, parse_repository
from agegen.runs import list_sources, open_run

# What the Hub's search knows licences and data sets by, told by words in the terms of the weights.
_LICENSES = (("non-commercial", "other"), ("CC BY 4.0", "cc-by-4.0"))
_TASK = {"type": "image-classification", "name": "Age and gender estimation"}


@dataclass(frozen=True)
class PushConfig:
    """Options of ``agegen push``."""

    run: Path
    repository: str
    private: bool = False


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now: where, at which commit, and the name by which ``--run`` loads it."""

    url: str
    commit: str
    name: str


def push_run(config: PushConfig) -> Pushed:
    """Upload a run's weights (safetensors, half precision), ONNX file, configuration and card, in one commit.

    Raises:
        AgegenError: the run isn't finished, the name isn't OWNER/NAME, or the Hub refuses or can't be reached.
    """
    repository = parse_repository(config.repository)
    run = open_run(config.run)
    record, report = run.read(), read_report(run.evaluation)
    with explain_refusal(repository):
        from huggingface_hub import HfApi

        # First of all: who isn't online, or may not write there, learns it before anything is exported.
        api = HfApi()
        api.create_repo(repository, private=config.private, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / HUB_CHECKPOINT
        onnx = checkpoint.with_suffix(ONNX_SUFFIX) if run.onnx.is_file() else None
        export_run(ExportConfig(config.run, checkpoint, onnx))
        card = folder / CARD_FILE
        write_text(folder / "README.md", write_front_matter(record, report, card.read_text(encoding="utf-8")))
        card.unlink()
        write_text(folder / "config.json", json.dumps(pick_config(record), indent=2) + "\n")
        message = f"{record.get('model', 'model')}, by agegen push"
        with explain_refusal(repository):
            done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return Pushed(str(done.commit_url), str(done.oid), f"hf://{repository}@{done.oid}")


@contextmanager
def explain_refusal(repository: str) -> Iterator[None]:
    """Say in one line what the Hub said, and what to do."""
    try:
        with quiet_hub():
            yield
    except Exception as error:  # the Hub client raises its own, its HTTP library's and OS errors
        raise AgegenError(
            f"can't push to {repository} ({explain_failure(error)}); log in with `hf auth login`, or set HF_TOKEN, and "
            "be online"
        ) from error


def read_report(path: Path) -> dict[str, Any]:
    """Return a run's ``eval.json``."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def pick_config(record: dict[str, Any]) -> dict[str, Any]:
    """Return of a run's record what others need to know of the model, without paths of this machine."""
    return {
        "library_name": "agegen",
        "model": record.get("model"),
        "plugin": record.get("plugin"),
        "settings": record.get("settings"),
        "best": record.get("best"),
    }


def write_front_matter(record: dict[str, Any], report: dict[str, Any], card: str) -> str:
    """Return a card with the block of metadata before it that the Hub reads: the numbers are the card's own."""
    from huggingface_hub import EvalResult, ModelCardData

    names = [Path(source).name for source in list_sources(record)]
    model = str(record.get("model", "model"))
    found = {
        ("mae", "MAE (years)"): report["age"]["mae"],
        ("accuracy", "gender accuracy"): report["gender"]["accuracy"],
        ("in_bracket", "age in the bracket"): report["bracket"]["in_bracket"],
    }
    results = [
        EvalResult(
            task_type=_TASK["type"],
            task_name=_TASK["name"],
            dataset_type=name,
            dataset_name=f"{name}, test split",
            metric_type=kind,
            metric_name=title,
            metric_value=value,
        )
        for name in (" + ".join(names),)
        for (kind, title), value in found.items()
        if value is not None
    ]
    data = ModelCardData(
        library_name="agegen",
        license=next((license for words, license in _LICENSES if words in card), "other"),
        datasets=names,
        metrics=sorted({kind for kind, _ in found}),
        model_name=model,
        eval_results=results,
        tags=["age-estimation", "gender-classification", "face", f"agegen-{model.partition(':')[0]}"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{card}"
