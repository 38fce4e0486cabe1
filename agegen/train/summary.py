"""What a study comes to: the mean and spread of its trainings, and the out-of-fold estimates of all faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.evaluate.estimates import read_predictions, write_predictions
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.study import OUT_OF_FOLD
from agegen.files import write_json
from agegen.runs import RunFolder, list_sources

if TYPE_CHECKING:
    import pandas as pd

# Of eval.json: what each part of a report is summarised by.
_PARTS = ("age", "bracket", "gender", "interval")


def summarize_study(path: Path, kind: str, model: str, parts: list[RunFolder]) -> dict[str, Any]:
    """Write and return ``folds.json`` or ``seeds.json``; of folds also ``out_of_fold.parquet``.

    ``spread`` is the standard deviation between trainings (n - 1), not that of the mean.
    """
    reports = [json.loads(run.evaluation.read_text(encoding="utf-8")) for run in parts]
    rows = [
        {"run": run.path.name, "n": report["n"], "metrics": pick_metrics(report)}
        for run, report in zip(parts, reports, strict=True)
    ]
    names = [name for name in rows[0]["metrics"] if all(row["metrics"].get(name) is not None for row in rows)]
    values = {name: np.array([row["metrics"][name] for row in rows]) for name in names}
    first = parts[0].read()
    summary = {
        "model": model,
        "kind": kind,
        "data": list(list_sources(first)),
        "count": len(parts),
        "parts": rows,
        "mean": {name: round_number(float(value.mean())) for name, value in values.items()},
        "spread": {name: round_number(float(value.std(ddof=1))) for name, value in values.items()},
    }
    if kind == "folds":
        plugin = first["plugin"]
        teacher = f"{model} ({plugin['distribution']} {plugin['version']}), {len(parts)} folds"
        write_out_of_fold(path / OUT_OF_FOLD, parts, teacher)
    write_json(path / f"{kind}.json", summary)
    return summary


def pick_metrics(report: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics of a report by their names, without intervals."""
    flat: dict[str, float | None] = {}
    for part in _PARTS:
        flat |= {name: value for name, value in report.get(part, {}).items() if not name.endswith("_ci95")}
    return flat


def write_out_of_fold(path: Path, parts: list[RunFolder], teacher: str) -> None:
    """Write the estimates of each face by the training that didn't see it, with the column ``fold``."""
    import pandas as pd

    tables: list[pd.DataFrame] = [
        read_predictions(run.predictions).assign(fold=number) for number, run in enumerate(parts, start=1)
    ]
    write_predictions(path, pd.concat(tables, ignore_index=True), teacher)
