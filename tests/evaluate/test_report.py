"""The HTML report of an evaluation: self-contained, without figures that the labels do not allow."""

import re
from dataclasses import replace

import numpy as np
import pytest

from agegen.evaluate.config import EvalConfig
from agegen.evaluate.evaluate import evaluate_run
from agegen.evaluate.report import render_html


@pytest.fixture(scope="module")
def result(trained_run):
    return evaluate_run(EvalConfig(trained_run))


def test_the_page_contains_all_figures_and_faces(result):
    html = render_html(replace(result, notices=("a <note>",)))
    assert html.count('<img src="data:image/png;base64,') == 5
    assert html.count("a face, labelled") == 12
    for title in ("Error by age", "Coverage by age", "Calibration of gender", "Estimated against true age"):
        assert f"<h2>{title}</h2>" in html
    assert "a &lt;note&gt;" in html
    assert f"Of {len(result.evaluation.groups)} groups, some stand out by chance" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    # The face with the largest error comes first.
    worst = (result.predictions["estimated_age"] - result.predictions["age"]).abs().idxmax()
    first = re.search(r"a face, labelled (\d+) years", html)
    assert first.group(1) == f"{result.predictions['age'][worst]:.0f}"


def test_without_exact_ages_the_page_has_no_figures_of_them(result):
    evaluation = replace(result.evaluation, counts={"age": 0, "bracket": 0, "gender": 5})
    html = render_html(replace(result, evaluation=evaluation, predictions=result.predictions.assign(age=np.nan)))
    assert html.count('<img src="data:image/png;base64,') == 1
    assert "Largest age errors" not in html


def test_the_command_writes_the_page(agegen, trained_run, tmp_path):
    assert agegen("eval", trained_run, "--report", tmp_path / "e.html").exit_code == 0
    assert (tmp_path / "e.html").read_text().startswith("<!doctype html>")
