"""Requests that come together are estimated in one batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from agegen.data.images import RGB
from agegen.predict.crop_model import BATCH_FACES
from agegen.predict.results import FaceEstimate

Estimate = Callable[[list[RGB]], list[FaceEstimate]]
_Job = tuple[Sequence[RGB], "Future[list[FaceEstimate]]"]


class Batcher:
    """Runs a model on one thread of its own, each time on all crops that wait.

    Nothing waits for others to come: while one batch is estimated, the next one gathers.
    """

    def __init__(self, estimate: Estimate, on_batch: Callable[[int], None] = lambda _: None) -> None:
        """Begin; ``estimate`` takes a list of crops, ``on_batch`` is told how many crops each batch had."""
        self._estimate, self._on_batch = estimate, on_batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="estimate", daemon=True)
        self._thread.start()

    def submit(self, crops: Sequence[RGB]) -> Future[list[FaceEstimate]]:
        """Return a future of the estimates of some crops, in their order."""
        future: Future[list[FaceEstimate]] = Future()
        self._jobs.put((crops, future))
        return future

    def close(self) -> None:
        """End the thread, after what waits already."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, ended = self._take_waiting(job)
            self._answer([job for job in jobs if job[1].set_running_or_notify_cancel()])
            if ended:
                return

    def _take_waiting(self, job: _Job) -> tuple[list[_Job], bool]:
        jobs, faces = [job], len(job[0])
        while faces < BATCH_FACES:
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return jobs, True
            jobs.append(following)
            faces += len(following[0])
        return jobs, False

    def _answer(self, jobs: list[_Job]) -> None:
        crops = [crop for part, _ in jobs for crop in part]
        if not jobs:
            return
        try:
            estimates = iter(self._estimate(crops))
            self._on_batch(len(crops))
            answers = [[next(estimates) for _ in part] for part, _ in jobs]
        except BaseException as error:
            for _, future in jobs:
                future.set_exception(error)
            return
        for (_, future), answer in zip(jobs, answers, strict=True):
            future.set_result(answer)
