"""The report of ``agegen data check``: lines and tables for the terminal, and an HTML page with pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.text import Text

from agegen.data.duplicates import MAX_DISTANCE
from agegen.data.labels import AGE_CLASSES
from agegen.datatools.check import TINY_SIDE, DataReport, Pair
from agegen.files import write_text
from agegen.render.figures import COLORS, make_figure
from agegen.render.html import Face, Figure, encode_face, encode_figure, render_page
from agegen.render.tables import PlainTable, render_table

if TYPE_CHECKING:
    import pandas as pd

# As many pictures as fill a page without scrolling for ever.
_SHOWN = 24
# As many rows as a terminal shows at once.
_ROWS_SHOWN = 20


@dataclass(frozen=True)
class _ShownPair:
    uris: list[str]
    caption: str


def list_findings(report: DataReport) -> list[str]:
    """Return what was found, a line each."""
    lines = [f"{report.faces:,} usable faces", *report.notices]
    for reason, count in Counter(item.reason for item in report.excluded).most_common(5):
        first = next(item.path for item in report.excluded if item.reason == reason)
        lines.append(f"{count:,} left out: {reason} (the first: {first})")
    if report.tiny:
        lines.append(f"{len(report.tiny):,} smaller than {TINY_SIDE} pixels (the first: {report.tiny[0].path})")
    lines += _list_duplicates(report)
    if report.heaped:
        heaped = ", ".join(str(age.age) for age in report.heaped)
        index = "" if np.isnan(report.whipple) else f"; Whipple's index is {report.whipple:.0f}"
        lines.append(f"ages heap at {heaped}{index}")
    small = [f"{group.column} {group.value} ({group.n})" for group in report.groups if group.small and group.n]
    if small:
        lines.append(f"too few faces to report on: {', '.join(small[:8])}{' …' if len(small) > 8 else ''}")
    lines += _list_leaks(report)
    if report.suspects is not None:
        lines.append(f"the model doubts the labels of {len(report.suspects):,} faces")
    return lines


def _list_duplicates(report: DataReport) -> list[str]:
    found = report.duplicates
    mirrored = [
        f"{len(report.mirrored):,} pairs are mirror images of each other, the first {pair.first} and {pair.second}; "
        "training mirrors its faces, and to it they are the same"
        for pair in report.mirrored[:1]
    ]
    if not found.pairs:
        return mirrored
    same = sum(pair.same_file for pair in found.pairs)
    return [
        f"{found.faces:,} faces ({found.faces / report.faces:.1%}) have a near-duplicate, in {found.groups:,} groups; "
        f"{len(found.pairs):,} pairs, {same:,} of them equal files",
        f"the labels of {len(found.conflicts):,} pairs conflict; those of a pair differ by {found.age_gap:.1f} "
        f"years on average, and in gender for {found.gender_gap:.1%}",
        *mirrored,
    ]


def _list_leaks(report: DataReport) -> list[str]:
    lines = [
        f"{one.kind}: a random 80/10/10 split tears {one.torn:.0%} of {one.clusters:,} clusters apart, and "
        f"{one.leaking:.1%} of its test faces have a fellow in training"
        for one in report.straddles
        if one.clusters
    ]
    if report.leaks is not None:
        lines.append(f"{report.leaks:,} groups of near-duplicates straddle the splits that came with the data")
    return lines


def make_tables(report: DataReport) -> list[PlainTable]:
    """Return the tables: groups, heaped ages, clusters, conflicts and suspects."""
    groups = [[group.column, group.value, f"{group.n:,}{'*' if group.small else ''}"] for group in report.groups]
    tables = [PlainTable("Groups (* fewer than 30 faces)", ["group", "value", "faces"], groups, left=2)]
    if report.heaped:
        rows = [[str(age.age), f"{age.n:,}", f"{age.expected:,.0f}"] for age in report.heaped]
        tables.append(PlainTable("Heaped ages", ["age", "faces", "expected"], rows, left=0))
    rows = [
        [one.kind, f"{one.clusters:,}", f"{one.faces:,}", f"{one.largest:,}", f"{one.torn:.1%}", f"{one.leaking:.1%}"]
        for one in report.straddles
    ]
    columns = ["cluster", "clusters", "faces", "largest", "torn by a random split", "test faces that leak"]
    tables.append(PlainTable("Clusters and a random 80/10/10 split", columns, rows))
    if conflicts := report.duplicates.conflicts:
        shown = conflicts[:_ROWS_SHOWN]
        rows = [[pair.first, pair.second, _describe_side(pair, 0), _describe_side(pair, 1)] for pair in shown]
        title = f"Duplicates with conflicting labels ({len(rows)} of {len(conflicts):,})"
        tables.append(PlainTable(title, ["first", "second", "labelled", "labelled"], rows, left=4))
    if report.suspects:
        rows = [[one.path, one.reason] for one in report.suspects[:_ROWS_SHOWN]]
        title = f"Likely wrong labels ({len(rows)} of {len(report.suspects):,})"
        tables.append(PlainTable(title, ["face", "why"], rows, left=2))
    return tables


def render_check(report: DataReport) -> Group:
    """Return the findings and tables for the terminal."""
    lines = Text("\n".join(list_findings(report)))
    return Group(Text(f"{report.source}", style="bold"), lines, *(render_table(table) for table in make_tables(report)))


def write_check_page(path: Path, report: DataReport) -> None:
    """Write the report as one self-contained HTML page, whole or not at all."""
    write_text(path, render_check_page(report))


def render_check_page(report: DataReport) -> str:
    """Return the report as HTML, with pictures of the conflicts and suspects."""
    positions = {name: index for index, name in enumerate(report.frame["path"])}
    figures = [
        Figure(
            "Ages",
            "How many faces each year of age has.",
            encode_figure(draw_ages(report.frame, [age.age for age in report.heaped])),
        ),
        Figure(
            "Groups",
            "How many faces each group has.",
            encode_figure(draw_groups([(f"{group.column} {group.value}", group.n) for group in report.groups])),
            width=40,
        ),
    ]
    shown = [_show_pair(report, positions, pair) for pair in report.duplicates.conflicts[:_SHOWN]]
    suspects = []
    for suspect in (report.suspects or [])[:_SHOWN]:
        if uri := encode_face(report.records, positions.get(suspect.path)):
            suspects.append(Face(uri, suspect.age, f"{suspect.path}: {suspect.reason}"))
    return render_page(
        "data_check.html.j2",
        report=report,
        findings=list_findings(report),
        figures=figures,
        tables=make_tables(report),
        pairs=[pair for pair in shown if len(pair.uris) == 2],
        suspects=suspects,
        max_distance=MAX_DISTANCE,
    )


def _show_pair(report: DataReport, positions: dict[str, int], pair: Pair) -> _ShownPair:
    found = [encode_face(report.records, positions.get(name)) for name in (pair.first, pair.second)]
    caption = f"{_describe_side(pair, 0)} and {_describe_side(pair, 1)}: {pair.first}, {pair.second}"
    return _ShownPair([uri for uri in found if uri], caption)


def _describe_side(pair: Pair, side: int) -> str:
    return f"{pair.ages[side]}, {pair.genders[side]}"


def draw_ages(frame: pd.DataFrame, heaped: list[int]) -> Any:
    """Draw how many faces each year of age has, by gender (columns age, female); heaped ages are marked."""
    figure, axes = make_figure(1, 1, 11, 3.6)
    axis = axes[0][0]
    years = range(AGE_CLASSES)
    below = [0] * AGE_CLASSES
    for color, (female, label) in zip(COLORS, ((False, "male"), (True, "female")), strict=False):
        found = frame.loc[frame["female"] == female, "age"].dropna().astype(int).value_counts()
        counts = [int(found.get(year, 0)) for year in years]
        axis.bar(years, counts, bottom=below, width=1.0, color=color, label=label)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    for age in heaped:
        axis.annotate(str(age), (age, below[age]), ha="center", va="bottom", fontsize=8)
    axis.set_xlabel("age (years); numbered: heaped")
    axis.set_ylabel("faces")
    axis.legend(fontsize=8)
    return figure


def draw_groups(counts: list[tuple[str, int]]) -> Any:
    """Draw how many faces each group has, as bars from above: (name, faces)."""
    figure, axes = make_figure(1, 1, 7, 0.8 + 0.26 * len(counts))
    axis = axes[0][0]
    names, values = zip(*reversed(counts), strict=True)
    axis.barh(names, values, color=COLORS[0])
    for row, value in enumerate(values):
        axis.annotate(f" {value:,}", (value, row), va="center", fontsize=8)
    axis.set_xlabel("faces")
    axis.margins(x=0.12, y=0.01)
    return figure
