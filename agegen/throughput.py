"""What limits a training: the model, or the data that it waits for."""

from __future__ import annotations

from collections.abc import Iterator

from agegen.training import BatchResult

# By then caches are warm, and loaders have either got ahead or fallen behind.
BATCHES = 50
# A training that waits for longer than this share of its time would gain from quicker data.
_LIMIT = 0.1


class LimitFinder:
    """Looks at the batches of a training and says once what limits it, after 50 of them or the first epoch.

    ``input_rate`` is what the input could give in images/s, had it the cores to itself.
    """

    def __init__(self, input_rate: float) -> None:
        self._input_rate = input_rate
        self._batches = 0

    def look(self, batch: BatchResult) -> Iterator[str]:
        """Yield the finding, where this batch is the one to say it after."""
        self._batches += 1
        if self._batches == BATCHES or (self._batches < BATCHES and batch.batch == batch.batches and batch.epoch == 1):
            self._batches = BATCHES
            yield describe_limit(batch, self._input_rate)


def describe_limit(batch: BatchResult, input_rate: float) -> str:
    """Return in one line how quick a training is, and whether the model or the data limits it."""
    limit = "data" if batch.waiting > _LIMIT else "model"
    alone = batch.images_per_second / max(1 - batch.waiting, 1e-9)
    return (
        f"the {limit} limits this training: {batch.images_per_second:,.0f} images/s after {batch.batch} batches, "
        f"{batch.waiting:.0%} of the time spent waiting for data; without waiting {alone:,.0f}, "
        f"the input by itself {input_rate:,.0f}"
    )
