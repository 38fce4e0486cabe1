"""The served models: loaded once, each with one inference thread that batches the crops of concurrent requests."""

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


@dataclass(frozen=True)
class ServedModel:
    """A loaded model; ``name`` is what clients give as ``?model=``."""

    name: str
    estimator: Estimator
    batcher: Batcher

    def to_json(self) -> dict[str, Any]:
        """Return the model's entry in ``/v1/models``."""
        model = self.estimator.model
        return {
            "name": self.name,
            "model": model.name,
            "detector": self.estimator.detector,
            "min_confidence": round(self.estimator.min_confidence, 4),
            "engine": model.engine.name,
            "precision": model.engine.precision,
            "input_size": model.engine.input_size,
            "licence": str(model.info.training.get("terms") or "") or None,
        }


@dataclass(frozen=True)
class PredictRequest:
    """The query parameters of a request.

    Attributes:
        model: that estimates the faces.
        min_score: minimum detection score, 0–1.
        distribution: whether rows include the age distribution P(age).
    """

    model: ServedModel
    min_score: float = 0.0
    distribution: bool = False

    @property
    def extractor(self) -> FaceExtractor:
        """The face extractor with this request's ``min_score``."""
        return self.model.estimator.extractor.with_min_score(self.min_score)

    def build_prediction(self, extracted: ExtractedFaces, estimates: Sequence[FaceEstimate]) -> PhotoPrediction:
        """Return the prediction of one image (or page), given an estimate for each of its crops."""
        if not self.distribution:
            estimates = [replace(estimate, distribution=None) for estimate in estimates]
        photo = self.model.estimator.row_builder.build(extracted, estimates)
        options = PredictConfig((), min_score=self.min_score, distribution=self.distribution).format_row_options()
        return replace(photo, options=options or None)


class Batcher:
    """Dynamic batching: one thread runs the model, each time on all crops that are waiting.

    It never waits for further crops: while one batch is estimated, the next one accumulates.
    """

    def __init__(self, estimate: Estimate, on_batch: Callable[[int], None] = lambda _: None) -> None:
        """Start the thread; ``estimate`` takes a list of crops, ``on_batch`` receives the size of each batch."""
        self._estimate, self._on_batch = estimate, on_batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="estimate", daemon=True)
        self._thread.start()

    def submit(self, crops: Sequence[RGB]) -> Future[list[FaceEstimate]]:
        """Return a future of the estimates, one per crop, in the same order."""
        future: Future[list[FaceEstimate]] = Future()
        self._jobs.put((crops, future))
        return future

    def close(self, seconds: float | None = None) -> bool:
        """Finish the waiting jobs, then end the thread; return whether it ended, after ``seconds`` at the latest."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, closing = self._collect_batch(job)
            self._run_batch([job for job in jobs if job[1].set_running_or_notify_cancel()])
            if closing:
                return

    def _collect_batch(self, job: _Job) -> tuple[list[_Job], bool]:
        """Return a job and the waiting ones behind it up to the batch size, and whether the thread should end."""
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

    def _run_batch(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        crops = [crop for part, _ in jobs for crop in part]
        try:
            estimates = iter(self._estimate(crops))
            self._on_batch(len(crops))
            results = [[next(estimates) for _ in part] for part, _ in jobs]
        except BaseException as error:
            for _, future in jobs:
                future.set_exception(error)
            return
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)


def load_models(
    names: Sequence[str],
    runs: Sequence[str],
    detector: str,
    on_batch: Callable[[str, int], None],
    precision: str = "auto",
) -> dict[str, ServedModel]:
    """Load the named models and runs, or all bundled weights that have an ONNX file; the first one is the default.

    Args:
        names: bundled weights, ``NAME`` or ``NAME/WEIGHTS``.
        runs: run folders, checkpoints or ``hf://`` addresses.
        detector: see :class:`agegen.predict.estimator.Estimator`.
        on_batch: receives the model's name and the number of faces of each batch.
        precision: see :meth:`agegen.predict.estimator.Estimator.load`.

    Raises:
        AgegenError: a model cannot be loaded, two have the same name, or there are none.
    """
    sources: list[tuple[str, dict[str, str]]] = []
    for name in [*names] or ([] if runs else list_onnx_weights()):
        model, weights = split_weights_name(name)
        sources.append((name, {"model": model, "weights": weights}))
    sources += [(get_run_name(run), {"run": run}) for run in runs]
    loaded: dict[str, ServedModel] = {}
    for name, source in sources:
        if name in loaded:
            raise AgegenError(f"two models have the name '{name}'. Serve only one of them, or rename the run folder.")
        estimator = Estimator.load(**source, detector=detector, precision=precision, distribution=True)  # type: ignore[arg-type]
        loaded[name] = _serve_model(name, estimator, on_batch)
    if not loaded:
        raise AgegenError("no model to serve. Give --model NAME or --run RUN.")
    return loaded


def _serve_model(name: str, estimator: Estimator, on_batch: Callable[[str, int], None]) -> ServedModel:
    return ServedModel(name, estimator, Batcher(estimator.model.estimate, lambda faces: on_batch(name, faces)))


def list_onnx_weights() -> list[str]:
    """Return the bundled weights that have an ONNX file (serving them does not need torch), the default model first."""
    names = []
    for plugin in list_plugins():
        try:
            listed = list_weights(plugin)
        except CheckpointError:
            continue
        for weights in listed:
            if not weights.remote and locate_file(plugin, str(Path(weights.source).with_suffix(ONNX_SUFFIX))):
                names.append(plugin.name if weights.name == DEFAULT_WEIGHTS else f"{plugin.name}/{weights.name}")
    return sorted(names, key=lambda name: (name.partition("/")[0] != DEFAULT_MODEL, "/" in name, name))


def get_run_name(run: str) -> str:
    """Return the name under which a run is served: its folder or file name, or ``OWNER/NAME`` on the Hub."""
    if is_hub_run(run):
        return run.removeprefix("hf:").strip("/")
    path = Path(run)
    return path.stem if path.suffix in (".safetensors", ONNX_SUFFIX) else path.resolve().name
