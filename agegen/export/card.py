"""The model card: a trained model's intended use, training data, recipe, metrics and limitations, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.data.labels import MAX_AGE
from agegen.errors import CheckpointError, format_count
from agegen.files import write_text
from agegen.model.calibration import describe_weaknesses, read_calibration
from agegen.model.metadata import CheckpointInfo, read_info
from agegen.render.tables import METRIC_TITLES, format_bounds, format_duration, format_value
from agegen.runs import RunFolder, compute_training_seconds, list_sources

UNKNOWN_TERMS = "those of the training data"
# Worst groups listed per metric under "Limitations"; the table of groups has them all.
_WORST_GROUPS = 3
# Groups with fewer faces are not listed there: their metrics are mostly noise.
_MIN_FACES = 30
# For these, what is worst: the part of a group's metrics, the metric, title, format, factor, whether higher is better.
_LIMITATIONS = (
    ("age", "mae", "Largest age errors", "MAE {:.1f} years", 1, False),
    ("bracket", "in_bracket", "Lowest accuracy of age brackets", "{:.1f} %", 100, True),
    ("gender", "accuracy", "Lowest gender accuracy", "{:.1f} %", 100, True),
)
# The validation metrics of an epoch: key in run.json, metric, format.
_VALIDATION = (
    ("val_mae", "mae", "MAE {} years"),
    ("val_in_bracket", "in_bracket", "{} in the bracket"),
    ("val_accuracy", "accuracy", "gender accuracy {}"),
)


@dataclass(frozen=True)
class _Facts:
    """The sources of a card: ``run.json``, ``eval.json`` and the checkpoint's metadata."""

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
    """Write the model card of a finished run.

    Args:
        path: of the card.
        run: whose ``run.json``, ``eval.json`` and checkpoint are read.
        weights: the file that the card describes: the run's checkpoint, or one exported from it.
        repeats: further runs of the same command, whose metrics are listed for comparison.
        record: the content of ``run.json`` if it has not been written yet.

    Raises:
        CheckpointError: the run is not finished, or a file is missing or invalid.
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
        repeats=[_make_repeat_row(other) for other in (run, *repeats)] if repeats else [],
        **_describe_training(facts.record, facts.info),
        **_describe_metrics(facts.report),
        calibration=facts.info.calibration,
        weaknesses=describe_weaknesses(read_calibration(facts.info.calibration)),
    )


def _read_facts(run: RunFolder, record: dict[str, Any] | None = None) -> _Facts:
    record = run.read() if record is None else record
    if not record.get("finished"):
        raise CheckpointError(f"{run.path} is not finished. Finish it with `agegen train --resume {run.path}`.")
    return _Facts(record, run.read_evaluation(), read_info(run.checkpoint))


def _describe_training(record: dict[str, Any], info: CheckpointInfo) -> dict[str, Any]:
    """Return the template's values about the model, its data and its training."""
    data, settings = record["data"], record["settings"]
    trained = "only the heads were trained, on a frozen backbone" if info.base else "all layers were trained"
    return {
        "model": info.model,
        "summary": f"Estimates age and gender from an aligned face crop; {trained}.",
        "plugin": record["plugin"],
        "parameters": record["parameters"],
        "base": info.base,
        "input_size": info.input_spec["size"],
        "terms": data.get("terms") or UNKNOWN_TERMS,
        "data": {**data, "source_name": " and ".join(list_dataset_names(record))},
        "split_origin": data.get("split_origin", "seed"),
        "leaks": data.get("leaking_groups", 0),
        "persons": bool(data.get("persons")),
        "counts": ", ".join(f"{count:,} {name}" for name, count in data.get("counts", {}).items()),
        "seed": record["seed"],
        "command": record.get("command", f"agegen train --model {info.model}"),
        "recipe": _format_recipe(record, frozen=bool(info.base)),
        "duration": format_duration(compute_training_seconds(record)),
        "feature_duration": _format_feature_duration(record["seconds"].get("features", 0)),
        "machine": record["machine"],
        "libraries": record["libraries"],
        "best": record["best"],
        "validation": _format_validation(record["best"]),
        "epochs": settings["epochs"],
    }


def _format_feature_duration(seconds: float) -> str:
    """Return how long the features were computed; "" if they were cached or the backbone is trained."""
    return format_duration(seconds) if seconds >= 1 else ""


def list_dataset_names(record: dict[str, Any]) -> list[str]:
    """Return the names of a run's datasets: the last part of each path, without the weight after ``::``."""
    return [Path(source.partition("::")[0]).name for source in list_sources(record)]


def _format_recipe(record: dict[str, Any], frozen: bool) -> str:
    settings, options = record["settings"], record["options"]
    parts = [
        f"AdamW, peak learning rate {settings['lr']:g}, weight decay {settings['weight_decay']:g}",
        f"batch size {options['batch_size']}, {format_count(settings['epochs'], 'epoch')}",
        "warm-up and cosine decay, EMA of the weights",
    ]
    if record.get("start"):
        parts.append(f"initialized with {_format_start(record['start'])}")
    if teachers := record.get("teachers"):
        parts.append(f"distilled from {'; '.join(teachers)} (soft labels)")
    if balance := options.get("age_balance"):
        parts.append(f"rare ages oversampled with exponent {balance:g}")
    parts.append(f"{settings['views']} fixed views of each face" if frozen else "new random augmentation in each epoch")
    return ", ".join(parts) + "."


def _format_start(start: dict[str, Any]) -> str:
    """Return the weights that a training started from, and how many faces of the test set these were trained on."""
    seen = start.get("seen", {}).get("test")
    leak = "" if seen is None else f" (their training set contained {seen:,} faces of this test set)"
    return f"the weights of `{Path(start['checkpoint']).parent.name}`{leak}"


def _format_validation(best: dict[str, Any]) -> str:
    return ", ".join(
        form.format(format_value(name, best[key])) for key, name, form in _VALIDATION if best.get(key) is not None
    )


def _describe_metrics(report: dict[str, Any]) -> dict[str, Any]:
    """Return the template's values about the metrics on the test set."""
    parts = ("age", "bracket", "interval", "gender", "confident")
    flat: dict[str, Any] = {name: value for part in parts for name, value in report.get(part, {}).items()}
    trivial = {name: value for part in report["baseline"].values() for name, value in part.items()}
    metrics = [
        [title, format_value(name, flat[name]), _format_interval(name, flat), format_value(name, trivial.get(name))]
        for name, title in METRIC_TITLES.items()
        if flat.get(name) is not None
    ]
    return {
        "evaluation": report,
        "metrics": metrics,
        "groups": [_make_group_row(group) for group in report["groups"]],
        "coverage": None if flat.get("coverage") is None else format_value("coverage", flat["coverage"]),
        "named": format_value("named", flat.get("named")),
        "named_accuracy": format_value("named_accuracy", flat.get("named_accuracy")),
        "limitations": list_limitations(report["groups"]),
    }


def list_limitations(groups: list[dict[str, Any]]) -> list[str]:
    """Return sentences that name the groups with the largest MAE and with the lowest accuracies."""
    large = [group for group in groups if group["n"] >= _MIN_FACES]
    lines = []
    for part, name, title, form, factor, higher_is_better in _LIMITATIONS:
        known = [group for group in large if group.get(part, {}).get(name) is not None]
        worst = sorted(known, key=lambda group: group[part][name], reverse=not higher_is_better)[:_WORST_GROUPS]
        shown = [f"{one['column']} {one['value']} ({form.format(one[part][name] * factor)})" for one in worst]
        lines += [f"{title}: {', '.join(shown)}."] if shown else []
    return lines


def _make_group_row(group: dict[str, Any]) -> list[str]:
    bracket = group.get("bracket", {})
    return [
        _escape(group["column"]),
        _escape(group["value"]),
        f"{group['n']:,}{'*' if group['small'] else ''}",
        format_value("mae", group["age"].get("mae")),
        _format_interval("mae", group["age"]),
        # Evaluations before this metric existed lack it.
        format_value("bias", group["age"].get("bias")),
        format_value("coverage", group.get("interval", {}).get("coverage")),
        format_value("in_bracket", bracket.get("in_bracket")),
        format_value("accuracy", group["gender"].get("accuracy")),
        _format_interval("accuracy", group["gender"]),
    ]


def _escape(value: Any) -> str:
    """Return a value as a cell of a Markdown table: without line breaks, vertical bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _make_repeat_row(run: RunFolder) -> list[str]:
    facts = _read_facts(run)
    best, report = facts.record["best"], facts.report
    return [
        run.path.name,
        format_value("mae", best.get("val_mae")),
        format_value("accuracy", best.get("val_accuracy")),
        *(
            f"{format_value(name, report[part].get(name))} ({_format_interval(name, report[part])})"
            for part, name in (("age", "mae"), ("gender", "accuracy"))
        ),
    ]


def _format_interval(name: str, metrics: dict[str, Any]) -> str:
    bounds = metrics.get(f"{name}_ci95")
    return "–" if bounds is None else format_bounds(name, *bounds)
