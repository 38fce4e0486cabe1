"""The report of ``agegen data check``: lines and tables for the terminal, and an HTML page with images."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.text import Text

from agegen.data.duplicates import MAX_DISTANCE
from agegen.data.labels import AGE_CLASSES, Labels, read_labels
from agegen.datatools.check import TINY_SIDE, DataReport, Pair
from agegen.errors import format_count
from agegen.files import write_text
from agegen.render.figures import COLORS, WIDE_PANEL, make_panel
from agegen.render.html import Face, Figure, encode_face, encode_panels, render_page
from agegen.render.tables import PlainTable, make_sectioned_table, render_table

if TYPE_CHECKING:
    import pandas as pd

# Pairs and faces on the page; JSON has all of them.
_IMAGES_SHOWN = 24
# Rows of a table in the terminal.
_ROWS_SHOWN = 20
# Small groups in the list of findings.
_GROUPS_SHOWN = 8
# Reasons for exclusions in the list of findings, the most frequent first.
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class _ShownPair:
    uris: list[str]
    caption: str


def render_check(report: DataReport) -> Group:
    """Return the findings and tables for the terminal."""
    lines = Text("\n".join(list_findings(report)))
    return Group(Text(f"{report.source}", style="bold"), lines, *(render_table(table) for table in make_tables(report)))


def write_check_page(path: Path, report: DataReport) -> None:
    """Write the report as one self-contained HTML page."""
    write_text(path, render_check_page(report))


def render_check_page(report: DataReport) -> str:
    """Return the report as HTML, with images of conflicting duplicates and likely label errors."""
    positions = {name: index for index, name in enumerate(report.frame["path"])}
    return render_page(
        "data_check.html.j2",
        report=report,
        # Paths are long; the page gives them below the title.
        name=" + ".join(Path(source).name or source for source in report.source.split(" + ")),
        findings=list_findings(report),
        figures=_draw_figures(report),
        tables=make_tables(report),
        pairs=_show_conflicts(report, positions),
        issues=_show_label_issues(report, positions),
        max_distance=MAX_DISTANCE,
    )


def list_findings(report: DataReport) -> list[str]:
    """Return the findings, one per line."""
    lines = [f"{format_count(report.faces, 'usable face')}", *report.notices]
    for reason, count in Counter(item.reason for item in report.excluded).most_common(_REASONS_SHOWN):
        first = next(item.path for item in report.excluded if item.reason == reason)
        lines.append(f"{count:,} excluded: {reason} (the first: {first})")
    if report.tiny:
        lines.append(f"{len(report.tiny):,} smaller than {TINY_SIDE} pixels (the first: {report.tiny[0].path})")
    lines += _list_duplicates(report)
    if report.heaped:
        heaped = ", ".join(str(age.age) for age in report.heaped)
        index = "" if np.isnan(report.whipple) else f"; Whipple's index is {report.whipple:.0f}"
        lines.append(f"heaped ages: {heaped}{index}")
    small = [f"{group.column} {group.value} ({group.n})" for group in report.groups if group.small]
    if small:
        more = " …" if len(small) > _GROUPS_SHOWN else ""
        lines.append(f"groups with too few faces to report on: {', '.join(small[:_GROUPS_SHOWN])}{more}")
    lines += _list_leakage(report)
    if report.label_issues is not None:
        lines.append(f"the model contradicts the labels of {format_count(len(report.label_issues), 'face')}")
    return lines


def _list_duplicates(report: DataReport) -> list[str]:
    found = report.duplicates
    mirrored = [
        f"{format_count(len(report.mirrored), 'pair')} of mirror images, the first {pair.first} and {pair.second}; "
        "training with mirrored images treats them as duplicates"
        for pair in report.mirrored[:1]
    ]
    if not found.pairs:
        return mirrored
    same = sum(pair.same_file for pair in found.pairs)
    pairs = format_count(len(found.pairs), "pair")
    return [
        f"{found.faces:,} faces ({100 * found.faces / report.faces:.1f} %) have a near-duplicate, in "
        f"{format_count(found.groups, 'group')}; {pairs}, {same:,} of them equal files",
        f"{format_count(len(found.conflicts), 'pair')} with conflicting labels; ages within a pair differ by "
        f"{found.age_gap:.1f} years on average, genders in {100 * found.gender_gap:.1f} % of the pairs",
        *mirrored,
    ]


def _list_leakage(report: DataReport) -> list[str]:
    lines = [
        f"{one.kind}: a random 80/10/10 split would separate {100 * one.split_fraction:.0f} % of "
        f"{format_count(one.clusters, 'cluster')}; "
        f"{100 * one.leak_fraction:.1f} % of its test faces would have a face of the same cluster in the training set"
        for one in report.cluster_leakage
        if one.clusters
    ]
    if report.leaking_groups is not None:
        lines.append(
            f"{format_count(report.leaking_groups, 'group')} of near-duplicates in more than one of the dataset's own "
            "splits"
        )
    return lines


def make_tables(report: DataReport) -> list[PlainTable]:
    """Return the tables: groups, heaped ages, clusters, conflicting duplicates and likely label errors."""
    parts = [
        [[column, ""], *([group.value, f"{group.n:,}{'*' if group.small else ' '}"] for group in groups)]
        for column, groups in itertools.groupby(report.groups, lambda group: group.column)
    ]
    tables = [make_sectioned_table("Groups (* fewer than 30 faces)", ["group", "faces"], parts)]
    if report.heaped:
        rows = [[str(age.age), f"{age.n:,}", f"{age.expected:,.0f}"] for age in report.heaped]
        tables.append(PlainTable("Heaped ages", ["age", "faces", "expected"], rows, left=0))
    tables.append(_make_leakage_table(report))
    if conflicts := report.duplicates.conflicts:
        shown = conflicts[:_ROWS_SHOWN]
        rows = [[pair.first, pair.second, _format_labels(pair, 0), _format_labels(pair, 1)] for pair in shown]
        title = f"Duplicates with conflicting labels ({len(rows)} of {len(conflicts):,})"
        tables.append(PlainTable(title, ["first", "second", "labelled", "labelled"], rows, left=4))
    if report.label_issues:
        rows = [[issue.path, issue.reason] for issue in report.label_issues[:_ROWS_SHOWN]]
        title = f"Likely label errors ({len(rows)} of {len(report.label_issues):,})"
        tables.append(PlainTable(title, ["face", "reason"], rows, left=2))
    return tables


def _make_leakage_table(report: DataReport) -> PlainTable:
    rows = [
        [
            one.kind,
            f"{one.clusters:,}",
            f"{one.faces:,}",
            f"{one.largest:,}",
            f"{100 * one.split_fraction:.1f} %",
            f"{100 * one.leak_fraction:.1f} %",
        ]
        for one in report.cluster_leakage
    ]
    columns = ["cluster", "clusters", "faces", "largest", "clusters separated", "test faces that leak"]
    return PlainTable("Clusters and a random 80/10/10 split", columns, rows)


def _format_labels(pair: Pair, side: int) -> str:
    return f"{pair.ages[side]}, {pair.genders[side]}"


def _show_conflicts(report: DataReport, positions: dict[str, int]) -> list[_ShownPair]:
    """Return the pairs with the largest conflicts whose images are both readable."""
    shown = []
    for pair in report.duplicates.conflicts[:_IMAGES_SHOWN]:
        found = [encode_face(report.records, positions.get(name)) for name in (pair.first, pair.second)]
        uris = [uri for uri in found if uri]
        caption = f"{_format_labels(pair, 0)} and {_format_labels(pair, 1)}: {pair.first}, {pair.second}"
        if len(uris) == len(found):
            shown.append(_ShownPair(uris, caption))
    return shown


def _show_label_issues(report: DataReport, positions: dict[str, int]) -> list[Face]:
    """Return the faces with the likeliest label errors whose images are readable."""
    faces = []
    for issue in (report.label_issues or [])[:_IMAGES_SHOWN]:
        if uri := encode_face(report.records, positions.get(issue.path)):
            faces.append(Face(uri, issue.age, f"{issue.path}: {issue.reason}"))
    return faces


def _draw_figures(report: DataReport) -> list[Figure]:
    heaped = [age.age for age in report.heaped]
    groups = [(f"{group.column} {group.value}", group.n) for group in report.groups]
    return [
        Figure("Ages", _describe_ages(report.frame), encode_panels([draw_ages(report.frame, heaped)]), wide=True),
        Figure("Groups", "Number of faces by group.", encode_panels([draw_groups(groups)])),
    ]


def _describe_ages(frame: pd.DataFrame) -> str:
    spread = " The faces of a bracket are spread evenly over its years." if read_labels(frame).bracketed.any() else ""
    return f"Number of faces by age.{spread}"


def draw_ages(frame: pd.DataFrame, heaped: list[int]) -> Any:
    """Draw the number of faces by age and gender of labelled faces, brackets as bars; heaped ages are labelled."""
    figure, axis = make_panel(WIDE_PANEL)
    labels = read_labels(frame)
    below = np.zeros(AGE_CLASSES)
    genders = ((labels.female == 0, "male"), (labels.female == 1, "female"), (~labels.gendered, "gender unknown"))
    for color, (chosen, label) in zip(COLORS, genders, strict=False):
        counts = count_ages(labels.pick(chosen))
        if counts.any() or label != "gender unknown":
            # One outline: years of a bracket are one bar, without seams.
            edges = np.arange(AGE_CLASSES + 1) - 0.5
            axis.stairs(below + counts, edges, baseline=below.copy(), fill=True, color=color, label=label)
        below += counts
    for age in heaped:
        axis.annotate(str(age), (age, below[age]), ha="center", va="bottom", fontsize=8)
    axis.set_xlabel("age (years); heaped ages are labelled" if heaped else "age (years)")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("faces per year of age" if labels.bracketed.any() else "faces")
    axis.legend(fontsize=8, frameon=False)
    return figure


def count_ages(labels: Labels) -> NDArray[np.float64]:
    """Return the number of faces at each age (117,); the faces of a bracket are spread evenly over its years."""
    counts = np.zeros(AGE_CLASSES)
    known = ~np.isnan(labels.low)
    bounds = np.stack([labels.low[known], labels.high[known]], axis=1).astype(int)
    for (low, high), faces in zip(*np.unique(bounds, axis=0, return_counts=True), strict=True):
        counts[low : high + 1] += faces / (high + 1 - low)
    return counts


def draw_groups(counts: list[tuple[str, int]]) -> Any:
    """Draw the number of faces by group as horizontal bars, from top to bottom: (name, faces)."""
    figure, axis = make_panel(height=0.6 + 0.2 * len(counts))
    names, values = zip(*reversed(counts), strict=True)
    axis.barh(names, values, color=COLORS[0])
    for row, value in enumerate(values):
        axis.annotate(f" {value:,}", (value, row), va="center", fontsize=8)
    axis.set_xlabel("faces")
    axis.margins(x=0.12, y=0.01)
    return figure
