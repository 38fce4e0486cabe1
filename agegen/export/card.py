"""The model card: what a trained model is, where it comes from, how good it is and where it fails."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.data.labels import MAX_AGE
from agegen.errors import CheckpointError
from agegen.files import write_text
from agegen.model.metadata import CheckpointInfo, read_info
from agegen.render.tables import METRIC_TITLES, format_bounds, format_value
from agegen.runs import RunFolder, compute_training_seconds, list_sources

UNKNOWN_TERMS = "those of the training data"
# The worst few; the table above has them all.
_FAILURES_SHOWN = 3
# A worst group of fewer faces is chance.
_LEAST_FACES = 30


@dataclass(frozen=True)
class _Facts:
    """What a card is made from."""

    record: dict[str, Any]
    report: dict[str, Any]
    info: CheckpointInfo


def write_card(
    path: Path,
    run: RunFolder,
    weights: Path,
    repeats: tuple[RunFolder, ...] = (),
    record: dict[str, Any] | None = None,
) -> None:
    """Write the card of a finished run.

    Args:
        path: of the card.
        run: whose ``run.json``, ``eval.json`` and checkpoint are read.
        weights: the file that the card describes: the checkpoint, or what was exported from it.
        repeats: further runs of the same command, to be reported beside it.
        record: what ``run.json`` is about to hold; None reads it.

    Raises:
        CheckpointError: the run isn't finished or lacks a file.
    """
    write_text(path, render_card(run, weights, repeats, record))


def render_card(
    run: RunFolder, weights: Path, repeats: tuple[RunFolder, ...] = (), record: dict[str, Any] | None = None
) -> str:
    """Return the card as Markdown; see :func:`write_card`."""
    from importlib.metadata import version

    from jinja2 import Environment, PackageLoader

    facts = _read_facts(run, record)
    environment = Environment(
        loader=PackageLoader("agegen.render"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("model_card.md.j2").render(
        agegen=version("agegen"),
        weights=f"{weights.name}, {weights.stat().st_size / 1e6:.1f} MB",
        max_age=MAX_AGE,
        repeats=[_describe_repeat(other) for other in (run, *repeats)] if repeats else [],
        **_describe_model(facts),
        **_describe_quality(facts),
    )


def _read_facts(run: RunFolder, record: dict[str, Any] | None = None) -> _Facts:
    record = run.read() if record is None else record
    if not record.get("finished"):
        raise CheckpointError(f"{run.path} is not finished; there is no card to write yet")
    return _Facts(record, _read_report(run), read_info(run.checkpoint))


def _read_report(run: RunFolder) -> dict[str, Any]:
    try:
        report = json.loads(run.evaluation.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read {run.evaluation}: {error}") from error
    if not isinstance(report, dict) or not {"age", "gender", "groups", "interval"} <= report.keys():
        raise CheckpointError(f"{run.evaluation} has another form than this agegen writes")
    return report


def _describe_model(facts: _Facts) -> dict[str, Any]:
    record, info = facts.record, facts.info
    data, settings = record["data"], record["settings"]
    terms = data.get("terms") or UNKNOWN_TERMS
    frozen = "its heads trained on a frozen base" if info.base else "all of it trained"
    balance = record["options"].get("age_balance")
    recipe = (
        f"AdamW, peak learning rate {settings['lr']:g}, weight decay {settings['weight_decay']:g}, batches of "
        f"{record['options']['batch_size']}, {settings['epochs']} epochs, warm-up and cosine decay, EMA of the weights"
        + (f", starting from {_name_start(record)}" if record.get("start") else "")
        + (f", taught by {'; '.join(teachers)} (soft labels)" if (teachers := record.get("teachers")) else "")
        + (f", rare ages favoured with exponent {balance:g}" if balance else "")
        + (f", {settings['views']} fixed views of each face" if info.base else ", augmented anew in each epoch")
        + "."
    )
    return {
        "model": info.model,
        "summary": f"Estimates age and gender from an aligned photograph of a face; {frozen}.",
        "plugin": record["plugin"],
        "parameters": record["parameters"],
        "base": info.base,
        "input_size": info.input_spec["size"],
        "terms": terms,
        "data": {
            **data,
            "source_name": " and ".join(Path(one.partition("::")[0]).name for one in list_sources(record)),
        },
        "split_origin": data.get("split_origin", "seed"),
        "leaks": data.get("leaking_groups", 0),
        "notices": data.get("notices", []),
        "counts": ", ".join(f"{count:,} {name}" for name, count in data.get("counts", {}).items()),
        "seed": record["seed"],
        "command": record.get("command", f"agegen train --model {info.model}"),
        "recipe": recipe,
        "minutes": round(compute_training_seconds(record) / 60),
        "feature_minutes": round(record["seconds"].get("features", 0) / 60),
        "machine": record["machine"],
        "libraries": record["libraries"],
        "best": record["best"],
        "validation": _phrase_validation(record["best"]),
        "persons": bool(data.get("persons")),
        "epochs": settings["epochs"],
    }


def _name_start(record: dict[str, Any]) -> str:
    """Return what a training began with, in words, and how much of its test part that had been trained on."""
    start = record["start"]
    seen = start.get("seen", {}).get("test")
    told = "" if seen is None else f" ({seen:,} of the test faces had been trained on then)"
    return f"the weights of `{Path(start['checkpoint']).parent.name}`{told}"


def _phrase_validation(best: dict[str, Any]) -> str:
    kinds = (
        ("val_mae", "mae", "MAE {} years"),
        ("val_in_bracket", "in_bracket", "{} in the bracket"),
        ("val_accuracy", "accuracy", "accuracy {}"),
    )
    return ", ".join(
        form.format(format_value(name, best[key])) for key, name, form in kinds if best.get(key) is not None
    )


def _describe_quality(facts: _Facts) -> dict[str, Any]:
    report = facts.report
    parts = ("age", "bracket", "interval", "gender", "confident")
    flat = {name: value for part in parts for name, value in report.get(part, {}).items()}
    trivial = {name: value for part in report["baseline"].values() for name, value in part.items()}
    metrics = [
        [title, format_value(name, flat[name]), _format_bounds(name, flat), format_value(name, trivial.get(name))]
        for name, title in METRIC_TITLES.items()
        if flat.get(name) is not None
    ]
    return {
        "evaluation": report,
        "metrics": metrics,
        "groups": [_describe_group(group) for group in report["groups"]],
        "calibration": facts.info.calibration,
        "coverage": format_value("coverage", flat["coverage"]),
        "named": format_value("named", flat["named"]),
        "named_accuracy": format_value("named_accuracy", flat["named_accuracy"]),
        "failures": list_failures(report["groups"]),
    }


def list_failures(groups: list[dict[str, Any]]) -> list[str]:
    """Return in words where a model is worst: the groups with the largest MAE, the fewest ages in their brackets, and
    the lowest accuracy.
    """
    large = [group for group in groups if group["n"] >= _LEAST_FACES]
    kinds = (
        ("age", "mae", "Age", "{:.1f} years MAE", 1, False),
        ("bracket", "in_bracket", "Age in brackets", "{:.1f} % in theirs", 100, True),
        ("gender", "accuracy", "Gender", "{:.1f} % right", 100, True),
    )
    lines = []
    for part, name, title, form, factor, more_is_better in kinds:
        known = [group for group in large if group.get(part, {}).get(name) is not None]
        worst = sorted(known, key=lambda group: group[part][name], reverse=not more_is_better)[:_FAILURES_SHOWN]
        said = [f"{one['column']} {one['value']} ({form.format(one[part][name] * factor)})" for one in worst]
        lines += [f"{title} is worst for {', '.join(said)}."] if said else []
    return lines


def _describe_group(group: dict[str, Any]) -> list[str]:
    bracket = group.get("bracket", {})
    return [
        _escape(group["column"]),
        _escape(group["value"]),
        f"{group['n']:,}{'*' if group['small'] else ''}",
        format_value("mae", group["age"]["mae"]),
        _format_bounds("mae", group["age"]),
        format_value("coverage", group["interval"]["coverage"]),
        format_value("in_bracket", bracket.get("in_bracket")),
        format_value("accuracy", group["gender"]["accuracy"]),
        _format_bounds("accuracy", group["gender"]),
    ]


def _escape(value: Any) -> str:
    """Return a cell of a Markdown table: a bar in it would end it, a line break the row."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _describe_repeat(run: RunFolder) -> list[str]:
    facts = _read_facts(run)
    best, report = facts.record["best"], facts.report
    return [
        run.path.name,
        format_value("mae", best["val_mae"]),
        format_value("accuracy", best["val_accuracy"]),
        f"{format_value('mae', report['age']['mae'])} ({_format_bounds('mae', report['age'])})",
        f"{format_value('accuracy', report['gender']['accuracy'])} ({_format_bounds('accuracy', report['gender'])})",
    ]


def _format_bounds(name: str, flat: dict[str, Any]) -> str:
    bounds = flat.get(f"{name}_ci95")
    return "–" if bounds is None else format_bounds(name, *bounds)
