"""The HTML report of a comparison, as text and in a browser."""

import io
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from browsing import show_page
from rich.console import Console

from agegen.compare.compare import compare_runs
from agegen.compare.differences import find_group_differences, measure_biases, measure_rows
from agegen.compare.report import (
    format_estimate,
    make_tables,
    render_comparison,
    render_html,
    write_html_report,
)
from agegen.errors import DataError
from agegen.evaluate.config import CompareConfig


@pytest.fixture(scope="module")
def comparison(trained_run, tmp_path_factory):
    copy = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(trained_run, copy)
    return compare_runs(CompareConfig((str(trained_run), str(copy))))


def test_the_report_is_self_contained_and_complete(comparison):
    html = render_html(comparison)
    sources = re.findall(r'src="([^"]{0,40})', html)
    assert len(sources) == 2 * 12  # twelve faces of each run
    assert all(source.startswith("data:image/") for source in sources)
    assert html.count("<svg ") == 6 + 2 + 2 + 1  # curves, a panel per run, error and bias, calibration
    assert not re.findall(r'(?:href|src)="https?:', html)
    for text in ("Table 1: age", "Table 2: gender", "Table 3: cost", comparison.verdict):
        assert text in html


def test_models_without_learning_curves_are_named_with_the_reason(comparison):
    first, second = comparison.names
    reason = "bundled weights have no record of their epochs"
    alone = replace(comparison, curves={second: comparison.curves[second]}, missing_curves={first: reason})
    html = render_html(alone)
    assert f"No curves of {first}: {reason}." in html
    assert html.count("<svg ") == 11
    # The other model has the colour that it has in all figures: that of its place.
    curves = html[html.index("<h2>Learning curves") : html.index("<h2>Estimated against")]
    assert "var(--series-1)" in curves
    assert "var(--series-0)" not in curves
    none = render_html(replace(comparison, curves={}, missing_curves={first: reason, second: reason}))
    assert f"No curves of {first} and {second}: {reason}." in none
    assert none.count("<svg ") == 5


def test_three_models_are_all_in_the_tables(comparison):
    first, second = comparison.names
    third = "a-third-model-with-a-long-name"
    names = (first, second, third)
    # Enough faces for groups.
    predictions = {name: pd.concat([table] * 4, ignore_index=True) for name, table in comparison.predictions.items()}
    predictions[third] = predictions[second]
    age, gender = measure_rows(names, {name: [table] for name, table in predictions.items()})
    three = replace(
        comparison,
        names=names,
        age=age,
        gender=gender,
        costs=[comparison.costs[0]] * 3,
        biases=measure_biases(predictions),
        groups=find_group_differences(names, predictions),
        predictions=predictions,
    )
    tables = {table.title.split(":")[0]: table for table in make_tables(three)}
    metrics = [row[0] for row in tables["Table 1"].rows]
    assert all(metrics.count(name) == len(age) for name in names)
    assert {f"{name} − {first}" for name in (second, third)} <= {row[0] for row in tables["By group"].rows}
    # In a usual terminal, each value stands on one line with its interval.
    stream = io.StringIO()
    Console(file=stream, width=120).print(render_comparison(three))
    assert format_estimate("mae", age[0].values[2]) in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= 120


def test_without_the_data_the_report_has_no_faces(comparison, monkeypatch):
    def fail(data, reading):
        raise DataError("gone")

    monkeypatch.setattr("agegen.compare.report.load_sources", fail)
    html = render_html(comparison)
    assert "largest age errors" not in html
    assert "Table 1: age" in html


@pytest.mark.slow
def test_a_browser_shows_the_page_in_any_width_and_scheme(comparison, tmp_path):
    page = tmp_path / "report.html"
    write_html_report(page, replace(comparison, verdict="/a" * 300))
    for shown in show_page(page):
        assert shown.broken == 0
        assert shown.messages == []
        assert shown.overflow == 0
        assert shown.contrast > 4.5
        assert shown.hints == shown.wide
        assert shown.covered == 0
        # The tables of the comparison are wider than a phone.
        assert (shown.wide > 0) == (shown.width == 400)
