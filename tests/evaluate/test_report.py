"""The report of an evaluation: one page that needs no other file, and leaves out what the labels don't allow."""

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


def test_a_page_has_all_figures_and_faces_inside(result):
    html = render_html(replace(result, notices=("a <note>",)))
    assert html.count('<img src="data:image/png;base64,') == 4
    assert html.count("a face, labelled") == 12
    for title in ("Error by age", "Coverage by age", "Calibration of gender", "Estimated against true age"):
        assert f"<h2>{title}</h2>" in html
    assert "a &lt;note&gt;" in html
    assert f"{len(result.evaluation.groups)} groups were looked at" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    # The worst face comes first.
    worst = (result.predictions["estimated_age"] - result.predictions["age"]).abs().idxmax()
    first = re.search(r"a face, labelled (\d+) years", html)
    assert first.group(1) == f"{result.predictions['age'][worst]:.0f}"


def test_without_exact_ages_there_are_no_figures_of_them(result):
    evaluation = replace(result.evaluation, counts={"age": 0, "bracket": 0, "gender": 5})
    html = render_html(replace(result, evaluation=evaluation, predictions=result.predictions.assign(age=np.nan)))
    assert html.count('<img src="data:image/png;base64,') == 1
    assert "The largest errors" not in html


def test_the_command_writes_it(agegen, trained_run, tmp_path):
    assert agegen("eval", trained_run, "--report", tmp_path / "e.html").exit_code == 0
    assert (tmp_path / "e.html").read_text().startswith("<!doctype html>")
