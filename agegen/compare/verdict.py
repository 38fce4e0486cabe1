"""The verdict of a comparison: one plain sentence, made from the numbers alone."""

from __future__ import annotations

from agegen.compare.costs import Cost
from agegen.compare.differences import MetricRow


def write_verdict(
    names: tuple[str, ...],
    n: int,
    age: list[MetricRow],
    gender: list[MetricRow],
    costs: list[Cost],
    trainings: tuple[int, ...] = (1, 1),
    trained: bool = False,
) -> str:
    """Return one plain sentence on the first two runs, made from the numbers alone.

    Args:
        trainings: how many of each model there are.
        trained: whether the faces are those of the training split.
    """
    more = f" (of {len(names)} runs, this speaks of the first two)" if len(names) > 2 else ""
    if min(trainings[:2]) > 1:
        judged = f"This compares the models, by {trainings[0]} trainings of {names[0]} and {trainings[1]} of {names[1]}"
        once = ""
    else:
        judged, once = "This compares one training of each, not the models as such", "this training of "
    parts = []
    if row := next((row for row in age if row.name in ("mae", "in_bracket")), None):
        values = tuple(_phrase_value(row.name, metric.value) for metric in row.values[:2])
        parts.append(_phrase("age", "an MAE" if row.name == "mae" else "in the bracket", names, values, row, once))
    if gender:
        values = tuple(_phrase_value("accuracy", metric.value) for metric in gender[0].values[:2])
        parts.append(_phrase("gender", "an accuracy", names, values, gender[0], once))
    spent = [_phrase_cost(name, cost) for name, cost in zip(names[:2], costs[:2], strict=True)]
    faces = "faces that both were trained on" if trained else "faces that neither was trained on"
    return f"On {n:,} {faces}, {', and '.join(parts)}; {spent[0]}, {spent[1]}. {judged}{more}."


def _phrase_value(metric: str, value: float) -> str:
    return f"{value:.2f} years" if metric == "mae" else f"{value * 100:.1f} %"


def _phrase(task: str, measure: str, names: tuple[str, ...], values: tuple[str, ...], row: MetricRow, once: str) -> str:
    better = row.better[0]
    if better is None:
        both = " and ".join(f"{value} for {name}" for name, value in zip(names, values, strict=False))
        return f"{task} shows no clear difference ({measure} of {both})"
    best, other = (0, 1) if better == names[0] else (1, 0)
    return f"{once}{better} is better at {task} ({measure} of {values[best]} against {values[other]})"


def _phrase_cost(name: str, cost: Cost) -> str:
    once = f" after {cost.feature_minutes:.0f} for its features" if cost.feature_minutes else ""
    spent = "" if cost.minutes is None else f" in {cost.minutes:.0f} minutes"
    return f"{name} trained {cost.trainable / 1e6:.2f}M parameters{spent}{once}"
