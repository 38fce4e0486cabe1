"""The order of an epoch, its share among processes, and balanced sampling."""

import numpy as np
import pytest

from agegen.batches.batch import ShuffledFaces, compute_age_weights, draw_order, limit_batch_size
from agegen.data.labels import Labels
from agegen.distributed import DistContext
from agegen.errors import DataError


def make_labels(ages):
    ages = np.array(ages, dtype=np.float32)
    return Labels(ages, ages, np.ones(len(ages), dtype=np.float32))


class Drawn(ShuffledFaces):
    def iterate(self, epoch, start=0):
        return self.draw_batches(self.draw_epoch(epoch), start)


def test_equal_weights_give_a_permutation():
    orders = [draw_order(np.ones(100), 7, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[2], draw_order(np.ones(100), 7, 2))


def test_weights_decide_how_often_a_face_is_drawn():
    weights = np.array([3.0, 0.5, 0.5] + [1.0] * 97) * 100 / 101
    counts = np.mean([np.bincount(draw_order(weights, 0, epoch), minlength=100) for epoch in range(400)], axis=0)
    assert counts[:4] == pytest.approx(weights[:4], abs=0.1)


def test_rare_ages_are_drawn_more_often():
    weights = compute_age_weights(make_labels([30] * 90 + [80] * 9 + [np.nan]), 0.5)
    assert weights.mean() == pytest.approx(1)
    assert weights[90] / weights[0] == pytest.approx(10**0.5, rel=0.01)
    assert weights[99] == 1
    assert (compute_age_weights(make_labels([30, 30, 80]), 0) == 1).all()


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_parts_of_all_processes_are_the_batch(processes):
    labels = make_labels([*range(30), *[np.nan] * 10])
    whole = list(Drawn(labels, 12, 3).iterate(1))
    assert [len(batch.rows) for batch in whole] == [12, 12, 12]
    assert np.array_equal(np.concatenate([batch.positions for batch in whole]), np.arange(36))
    parts = [list(Drawn(labels, 12, 3, dist=DistContext(rank, processes)).iterate(1)) for rank in range(processes)]
    for number, batch in enumerate(whole):
        for field in ("rows", "positions"):
            joined = np.concatenate([getattr(part[number], field) for part in parts])
            assert np.array_equal(joined, getattr(batch, field))
        shared = parts[0][number].shared
        assert (shared.size, shared.known_genders) == (12, 12)
        assert shared.known_ages == (~np.isnan(labels.low[batch.rows])).sum()


def test_a_resumed_epoch_has_the_same_batches():
    whole, rest = (list(Drawn(make_labels(range(40)), 12, 3).iterate(1, start)) for start in (0, 2))
    assert len(rest) == 1
    assert np.array_equal(rest[0].rows, whole[2].rows)
    assert np.array_equal(rest[0].positions, whole[2].positions)


def test_batch_size_is_limited_by_the_data():
    assert limit_batch_size(64, 10) == 10
    with pytest.raises(DataError, match="too few faces to train on: 1"):
        limit_batch_size(64, 1)
