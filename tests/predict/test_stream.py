import itertools
import threading
import time

import pytest

from agegen.predict.estimator import WAITING, Waiting, stream_in_order


def collect(stream):
    return [item for item in stream if not isinstance(item, Waiting)]


def test_results_keep_the_order_whatever_they_take():
    def work(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    assert collect(stream_in_order(work, range(40), 4, 8)) == list(range(40))
    assert collect(stream_in_order(work, [], 2, 4)) == []


def test_the_reader_learns_that_it_has_to_wait():
    gate = threading.Event()
    stream = stream_in_order(lambda _: gate.wait(5), [1], 1, 2)
    assert next(stream) is WAITING
    gate.set()
    assert collect(stream) == [True]


def test_an_endless_source_is_not_read_ahead():
    drawn = []
    source = (drawn.append(number) or number for number in itertools.count())
    stream = stream_in_order(lambda number: number, source, 2, 4)
    assert next(item for item in itertools.islice(stream, 30) if item is not WAITING) == 0
    time.sleep(0.3)
    assert len(drawn) < 30 + 10
    stream.close()
    count = len(drawn)
    time.sleep(0.5)
    assert len(drawn) <= count + 1


def test_a_slow_source_holds_up_no_result():
    gate = threading.Event()

    def source():
        yield 1
        gate.wait(5)
        yield 2

    stream = stream_in_order(lambda number: number, source(), 1, 4)
    first = next(item for item in stream if item is not WAITING)
    assert first == 1
    assert not gate.is_set()
    gate.set()
    assert collect(stream) == [2]


@pytest.mark.parametrize("place", ["work", "source"])
def test_errors_come_out_in_their_place(place):
    def source():
        yield from (1, 2)
        if place == "source":
            raise ValueError("broken")
        yield 3

    def work(number):
        if number == 3:
            raise ValueError("broken")
        return number

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for item in stream_in_order(work, source(), 2, 4):
            seen += [] if item is WAITING else [item]
    assert seen == [1, 2]
