"""What a training says of its own speed."""

import pytest

from agegen.train.loop import BatchResult
from agegen.train.record import BATCHES, BottleneckDetector, describe_limit


def make_batch(number, batches, waiting=0.0, epoch=1):
    return BatchResult(epoch, number, batches, 1.0, 100.0, waiting)


@pytest.mark.parametrize(("batches", "said_after"), [(200, BATCHES), (BATCHES, BATCHES), (7, 7)])
def test_the_finding_comes_once(batches, said_after):
    finder = BottleneckDetector(500.0)
    said = [
        (epoch, number)
        for epoch in (1, 2)
        for number in range(1, batches + 1)
        for _ in finder.look(make_batch(number, batches, epoch=epoch))
    ]
    assert said == [(1, said_after)]


def test_a_resumed_training_says_it_after_as_many_batches():
    finder = BottleneckDetector(500.0)
    said = [number for number in range(150, 201) for _ in finder.look(make_batch(number, 300, epoch=4))]
    assert said == [199]


def test_who_waits_is_limited_by_data():
    slow = describe_limit(make_batch(50, 200, waiting=0.5), 90.0)
    assert slow.startswith("the data limits this training: 100 images/s after 50 batches, 50% of the time")
    assert slow.endswith("without waiting 200, the input by itself 90")
    assert describe_limit(make_batch(50, 200, waiting=0.01), 900.0).startswith("the model limits")
