"""The crops of concurrent requests are estimated in one batch, and each request gets its own estimates."""

import threading

import numpy as np
import pytest

from agegen.predict.results import FaceEstimate
from agegen.serve.models import Batcher


def make_crops(*numbers):
    return [np.full((2, 2, 3), number, dtype=np.uint8) for number in numbers]


class Model:
    """Estimates the value of a crop as its age; the first batch waits for ``proceed``."""

    def __init__(self):
        self.proceed, self.entered, self.batches = threading.Event(), threading.Event(), []

    def estimate(self, crops):
        self.entered.set()
        assert self.proceed.wait(10)
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
    model.proceed.set()
    batcher.close()


def test_waiting_crops_are_one_batch(model, batcher):
    first = batcher.submit(make_crops(1))
    assert model.entered.wait(10)
    others = [batcher.submit(make_crops(*numbers)) for numbers in ((2, 3), (4,), (5, 6, 7))]
    model.proceed.set()
    ages = [[face.age for face in future.result(10)] for future in (first, *others)]
    assert ages == [[1], [2, 3], [4], [5, 6, 7]]
    assert model.batches == [1, 6]


def test_batches_have_a_maximum_size(model, batcher):
    futures = [batcher.submit(make_crops(*range(20)))]
    assert model.entered.wait(10)
    futures += [batcher.submit(make_crops(*range(20))) for _ in range(8)]
    model.proceed.set()
    assert all(len(future.result(10)) == 20 for future in futures)
    assert max(model.batches) <= 80


def test_cancelled_jobs_are_skipped(model, batcher):
    first = batcher.submit(make_crops(1))
    assert model.entered.wait(10)
    cancelled, kept = batcher.submit(make_crops(2)), batcher.submit(make_crops(3))
    assert cancelled.cancel()
    model.proceed.set()
    assert [face.age for face in kept.result(10)] == [3]
    assert first.result(10)
    assert model.batches == [1, 1]


def test_an_error_reaches_its_request_and_the_thread_continues(model, batcher):
    model.proceed.set()
    with pytest.raises(ValueError, match="no face"):
        batcher.submit(make_crops(99)).result(10)
    assert [face.age for face in batcher.submit(make_crops(5)).result(10)] == [5]
