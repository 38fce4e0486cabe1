from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from agegen.errors import AgegenError
from agegen.predict.config import PredictConfig, check_options
from agegen.predict.estimator import Estimator
from agegen.predict.predict import make_video_options
from agegen.predict.video import Sampling, VideoOptions


def test_every_parameter_of_the_estimator_is_an_option():
    assert set(signature(Estimator.load).parameters) <= {field.name for field in fields(PredictConfig)}


def test_defaults_are_those_of_the_estimator():
    config = PredictConfig(())
    for name, parameter in signature(Estimator.load).parameters.items():
        assert getattr(config, name) == parameter.default, name


def test_only_non_default_options_are_recorded_in_rows():
    assert PredictConfig(("a.jpg",), model="scratch", csv="rows.csv").format_row_options() == ""
    config = PredictConfig(("a.jpg",), min_score=0.5, under=(18, 30), boxes=Path("boxes.csv"))
    assert config.format_row_options() == "min_score=0.5 boxes=boxes.csv under=18,30"


def test_video_options():
    assert make_video_options(PredictConfig(())) == VideoOptions()
    assert make_video_options(PredictConfig((), fps=4.0, frames=True)) == VideoOptions(Sampling(4.0), frames=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ()}, "no input"),
        ({"inputs": ("-", "a.jpg")}, "- cannot be combined with other inputs"),
        ({"fps": 0.0}, "--fps must be greater than 0"),
        ({"json": "-", "csv": "-"}, "only one of --json, --jsonl and --csv can write to stdout"),
        ({"cluster": "local"}, "--cluster requires --parquet OUT"),
        ({"parquet": "out", "csv": "a.csv"}, "--parquet cannot be combined with --csv"),
        ({"parquet": "out", "annotate": Path("boxes")}, "--parquet cannot be combined with --annotate"),
        ({"parquet": "out", "report": Path("faces.html")}, "--parquet cannot be combined with --report"),
        ({"resume": True, "report": Path("faces.html")}, "--resume requires exactly one output"),
        ({"resume": True}, "--resume requires exactly one output"),
        ({"resume": True, "json": "a.json"}, "--resume requires exactly one output"),
        ({"resume": True, "csv": "a.csv", "jsonl": "a.jsonl"}, "--resume requires exactly one output"),
    ],
)
def test_invalid_combinations_are_refused(options, message):
    with pytest.raises(AgegenError, match=message):
        check_options(PredictConfig(**{"inputs": ("a.jpg",), **options}))


def test_valid_combinations():
    check_options(PredictConfig(("a.jpg",), json="-", csv="a.csv"))
    check_options(PredictConfig((), boxes=Path("boxes.csv")))
    check_options(PredictConfig(("-",), jsonl="a.jsonl", resume=True))
    check_options(PredictConfig(("a.parquet",), parquet="out", cluster="local", resume=True))
