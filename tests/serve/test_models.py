"""Crops of requests that come together are estimated in one batch, and each gets its own answers."""

import threading

import numpy as np
import pytest

from agegen.predict.results import FaceEstimate
from agegen.serve.models import Batcher


def make_crops(*numbers):
    return [np.full((2, 2, 3), number, dtype=np.uint8) for number in numbers]


class Model:
    """Says of a crop its value, and waits before the first batch until it may go on."""

    def __init__(self):
        self.go, self.entered, self.batches = threading.Event(), threading.Event(), []

    def estimate(self, crops):
        self.entered.set()
        assert self.go.wait(10)
        self.batches.append(len(crops))
        if any(crop[0, 0, 0] == 99 for crop in crops):
            raise ValueError("no face")
        return [FaceEstimate(float(crop[0, 0, 0]), 0, 0, 0.5) for crop in crops]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    batcher = Batcher(model.estimate)
    yield batcher
    model.go.set()
    batcher.close()


def test_what_waits_is_one_batch(model, batcher):
    first = batcher.submit(make_crops(1))
    assert model.entered.wait(10)
    others = [batcher.submit(make_crops(*numbers)) for numbers in ((2, 3), (4,), (5, 6, 7))]
    model.go.set()
    answers = [[face.age for face in future.result(10)] for future in (first, *others)]
    assert answers == [[1], [2, 3], [4], [5, 6, 7]]
    assert model.batches == [1, 6]


def test_a_batch_has_an_end(model, batcher):
    futures = [batcher.submit(make_crops(*range(20)))]
    assert model.entered.wait(10)
    futures += [batcher.submit(make_crops(*range(20))) for _ in range(8)]
    model.go.set()
    assert all(len(future.result(10)) == 20 for future in futures)
    assert max(model.batches) <= 80


def test_given_up_work_is_left_out(model, batcher):
    first = batcher.submit(make_crops(1))
    assert model.entered.wait(10)
    given_up, kept = batcher.submit(make_crops(2)), batcher.submit(make_crops(3))
    assert given_up.cancel()
    model.go.set()
    assert [face.age for face in kept.result(10)] == [3]
    assert first.result(10)
    assert model.batches == [1, 1]


def test_a_fault_is_told_and_ends_nothing(model, batcher):
    model.go.set()
    with pytest.raises(ValueError, match="no face"):
        batcher.submit(make_crops(99)).result(10)
    assert [face.age for face in batcher.submit(make_crops(5)).result(10)] == [5]
