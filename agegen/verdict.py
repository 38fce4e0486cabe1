"""What a comparison comes to, in one plain sentence."""

from __future__ import annotations

from agegen.costs import Cost
from agegen.differences import MetricRow


def write_verdict(
    names: tuple[str, ...], n: int, age: list[MetricRow], gender: list[MetricRow], costs: list[Cost]
) -> str:
    """Return one plain sentence on the first two runs, made from the numbers alone."""
    mae, accuracy = age[0], gender[0]
    years = tuple(f"{metric.value:.2f}" for metric in mae.values[:2])
    shares = tuple(f"{metric.value * 100:.1f} %" for metric in accuracy.values[:2])
    trained = [_phrase_cost(name, cost) for name, cost in zip(names[:2], costs[:2], strict=True)]
    return (
        f"On {n:,} faces that neither model trained on, "
        f"{_phrase('age', 'an MAE', names, years, ' years', mae)}, and "
        f"{_phrase('gender', 'an accuracy', names, shares, '', accuracy)}; {trained[0]}, {trained[1]}."
    )


def _phrase(task: str, measure: str, names: tuple[str, ...], values: tuple[str, ...], unit: str, row: MetricRow) -> str:
    better = row.better[0]
    if better is None:
        both = " and ".join(f"{value}{unit} for {name}" for name, value in zip(names, values, strict=False))
        return f"{task} shows no clear difference ({measure} of {both})"
    best, other = (0, 1) if better == names[0] else (1, 0)
    return f"{better} is better at {task} ({measure} of {values[best]} against {values[other]}{unit})"


def _phrase_cost(name: str, cost: Cost) -> str:
    once = f" after {cost.feature_minutes:.0f} for its features" if cost.feature_minutes else ""
    return f"{name} trained {cost.trainable / 1e6:.2f}M parameters in {cost.minutes:.0f} minutes{once}"
