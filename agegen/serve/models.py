"""The models that are served: loaded once, each with the thread that runs it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agegen.data.images import RGB
from agegen.engines.loading import ONNX_SUFFIX
from agegen.errors import AgegenError, CheckpointError
from agegen.model.weights import DEFAULT_MODEL, DEFAULT_WEIGHTS, is_hub_run, list_weights, split_weights_name
from agegen.plugins import list_plugins, locate_file
from agegen.predict.config import PredictConfig
from agegen.predict.estimator import BATCH_FACES, Estimator
from agegen.predict.extraction import FaceExtractor
from agegen.predict.results import ExtractedFaces, FaceEstimate, PhotoPrediction

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


@dataclass(frozen=True)
class ServedModel:
    """A model as clients ask for it, by its ``name``."""

    name: str
    estimator: Estimator
    batcher: Batcher

    def to_json(self) -> dict[str, Any]:
        """Return what ``/v1/models`` tells."""
        model = self.estimator.model
        return {
            "name": self.name,
            "model": model.name,
            "detector": self.estimator.detector,
            "min_confidence": round(self.estimator.min_confidence, 4),
            "engine": model.engine.name,
            "input_size": model.engine.input_size,
            "licence": str(model.info.training.get("terms") or "") or None,
        }


@dataclass(frozen=True)
class Asked:
    """What a request wants: which model, how sure the detector must be, and whether rows hold P(age)."""

    served: ServedModel
    min_score: float = 0.0
    distribution: bool = False

    @property
    def extractor(self) -> FaceExtractor:
        """What looks at the request's pictures."""
        return self.served.estimator.extractor.with_min_score(self.min_score)

    def describe(self, cut: ExtractedFaces, estimates: Sequence[FaceEstimate]) -> PhotoPrediction:
        """Return what was found in a picture."""
        if not self.distribution:
            estimates = [replace(estimate, distribution=None) for estimate in estimates]
        photo = self.served.estimator.row_builder.build(cut, estimates)
        options = PredictConfig((), min_score=self.min_score, distribution=self.distribution).format_row_options()
        return replace(photo, options=options or None)


def load_models(
    names: Sequence[str], runs: Sequence[str], detector: str, on_batch: Callable[[str, int], None]
) -> dict[str, ServedModel]:
    """Load what is named, or all that ship ready for onnxruntime; the first is the default.

    Args:
        names: ``NAME`` or ``NAME/WEIGHTS`` of weights that ship.
        runs: run folders, checkpoints or ``hf://`` addresses.
        detector: see :class:`agegen.predict.estimator.Estimator`.
        on_batch: told the model's name and how many faces each batch had.

    Raises:
        AgegenError: one can't be loaded, or two have the same name.
    """
    chosen = [*names] or ([] if runs else list_ready())
    wanted: list[tuple[str, dict[str, str]]] = []
    for name in chosen:
        model, weights = split_weights_name(name)
        wanted.append((name, {"model": model, "weights": weights}))
    wanted += [(name_run(run), {"run": run}) for run in runs]
    served: dict[str, ServedModel] = {}
    for name, source in wanted:
        if name in served:
            raise AgegenError(f"two models are called '{name}'; serve one of them, or copy a run to another name")
        served[name] = _load(name, source, detector, on_batch)
    if not served:
        raise AgegenError("no model is there to be served: name one, --model NAME or --run RUN")
    return served


def list_ready() -> list[str]:
    """Return the weights that ship with an ONNX file beside them: torch is not needed to serve them."""
    found = []
    for plugin in list_plugins():
        try:
            listed = list_weights(plugin)
        except CheckpointError:
            continue
        for weights in listed:
            if not weights.remote and locate_file(plugin, str(Path(weights.source).with_suffix(ONNX_SUFFIX))):
                found.append(plugin.name if weights.name == DEFAULT_WEIGHTS else f"{plugin.name}/{weights.name}")
    return sorted(found, key=lambda name: (name.partition("/")[0] != DEFAULT_MODEL, "/" in name, name))


def name_run(run: str) -> str:
    """Return what a run is called: its folder, or on the Hub its owner and name."""
    if is_hub_run(run):
        return run.removeprefix("hf:").strip("/")
    path = Path(run)
    return path.stem if path.suffix in (".safetensors", ONNX_SUFFIX) else path.resolve().name


def _load(name: str, source: dict[str, str], detector: str, on_batch: Callable[[str, int], None]) -> ServedModel:
    estimator = Estimator.load(**source, detector=detector, distribution=True)  # type: ignore[arg-type]
    return ServedModel(name, estimator, Batcher(estimator.model.estimate, lambda faces: on_batch(name, faces)))
