"""The HTML report of an evaluation: self-contained, without figures that the labels do not allow."""

import re
from dataclasses import replace

import numpy as np
import pytest
from browsing import show_page

from agegen.evaluate.config import EvalConfig
from agegen.evaluate.evaluate import evaluate_run
from agegen.evaluate.metrics import Metric
from agegen.evaluate.report import draw_bands, render_html, write_eval_report, write_verdict


@pytest.fixture(scope="module")
def result(trained_run):
    return evaluate_run(EvalConfig(trained_run))


def test_the_page_contains_all_figures_and_faces(result):
    html = render_html(replace(result, notices=("a <note>",)))
    assert html.count("<svg ") == 1 + 2 + 2 + 2 + 1
    assert html.count("a face, labelled") == 12
    for title in ("Error by age", "Coverage by age", "Calibration of gender", "Estimated against true age"):
        assert f"<h2>{title}</h2>" in html
    assert "a &lt;note&gt;" in html
    assert f"Of {len(result.evaluation.groups)} groups, some stand out by chance" in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    # The face with the largest error comes first.
    worst = (result.predictions["estimated_age"] - result.predictions["age"]).abs().idxmax()
    first = re.search(r"a face, labelled (\d+) years", html)
    assert first.group(1) == f"{result.predictions['age'][worst]:.0f}"


def test_the_title_is_the_name_of_the_run_and_the_verdict_comes_first(result, trained_run):
    html = render_html(result)
    assert f"<h1>Evaluation of {trained_run.name}</h1>" in html
    verdict = write_verdict(result.name, result.evaluation)
    assert html.index('<p class="verdict">' + verdict.replace("'", "&#39;")) < html.index("<h2>")
    mae, baseline = result.evaluation.age.mae, result.evaluation.baseline[0].mae
    assert verdict.startswith(
        f"On 48 faces, {trained_run.name} is off by {mae.value:.2f} years of age on average (95 % "
    )
    assert f"better than the baseline's {baseline.value:.2f}, and gets " in verdict


@pytest.mark.parametrize(("low", "high", "phrase"), [(3, 5, "), better"), (8, 12, "), not clearly better")])
def test_the_verdict_says_whether_the_baseline_is_beaten(result, low, high, phrase):
    evaluation = result.evaluation
    age = replace(evaluation.age, mae=Metric((low + high) / 2, low, high))
    trivial = (replace(evaluation.baseline[0], mae=Metric(10, 9, 11)), *evaluation.baseline[1:])
    only_ages = replace(evaluation, age=age, baseline=trivial, counts={"age": 48, "bracket": 0, "gender": 0})
    assert f"(95 % interval {low}.00–{high}.00{phrase} than the baseline's 10.00. The baseline" in write_verdict(
        "m", only_ages
    )
    nothing = replace(evaluation, counts={"age": 0, "bracket": 0, "gender": 0})
    assert "nothing can be measured" in write_verdict("m", nothing)


def test_the_errors_by_true_and_by_estimated_age_have_one_scale(result):
    for name in ("mae", "bias", "coverage"):
        first, second = (figure.axes[0] for figure in draw_bands(result.evaluation, name))
        assert first.get_ylim() == second.get_ylim()
        assert [axis.get_title() for axis in (first, second)] == ["by true age", "by estimated age"]
    assert draw_bands(result.evaluation, "mae")[0].axes[0].get_ylim()[0] == 0


def test_the_figures_have_no_colours_that_vanish_on_dark_pages(result):
    html = render_html(result)
    figures = "".join(re.findall(r"<svg .*?</svg>", html, re.DOTALL))
    # Black, white, and those of the palette are variables of the page.
    assert set(re.findall(r"#[0-9a-f]{6}", figures)) <= {"#b0b0b0"}
    assert {"currentColor", "var(--series-0)", "var(--soft)"} <= set(
        re.findall(r"currentColor|var\(--[\w-]+\)", figures)
    )
    assert "<metadata" not in figures


@pytest.mark.slow
def test_a_browser_shows_the_page_in_any_width_and_scheme(result, tmp_path):
    page = tmp_path / "report.html"
    write_eval_report(page, replace(result, path=tmp_path / ("folder" * 40)))
    backgrounds = {}
    for shown in show_page(page):
        assert (shown.overflow, shown.broken, shown.messages, shown.covered) == (0, 0, [], 0)
        assert shown.contrast > 4.5
        # Only the table by group is too wide for a phone; that of the metrics fits.
        assert shown.hints == shown.wide == (1 if shown.width == 400 else 0)
        backgrounds[shown.scheme] = shown.background
    assert backgrounds["light"] != backgrounds["dark"]


def test_without_exact_ages_the_page_has_no_figures_of_them(result):
    evaluation = replace(result.evaluation, counts={"age": 0, "bracket": 0, "gender": 5})
    html = render_html(replace(result, evaluation=evaluation, predictions=result.predictions.assign(age=np.nan)))
    assert html.count("<svg ") == 1
    assert "Largest age errors" not in html


def test_the_command_writes_the_page(agegen, trained_run, tmp_path):
    done = agegen("eval", trained_run, "--report", tmp_path / "e.html")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"On 48 faces, {trained_run.name} is off by ")
    assert str(trained_run) not in done.stdout
    assert (tmp_path / "e.html").read_text().startswith("<!doctype html>")
