"""The models that are served: loaded once, each with the thread that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agegen.engines.loading import ONNX_SUFFIX
from agegen.errors import AgegenError, CheckpointError
from agegen.model.hub_runs import is_hub_run
from agegen.model.plugins import list_plugins, locate_file
from agegen.model.weights import DEFAULT_MODEL, DEFAULT_WEIGHTS, list_weights, split_shipped
from agegen.predict.config import PredictConfig
from agegen.predict.cutting import Cut, FaceCutter
from agegen.predict.estimator import Estimator
from agegen.predict.results import FaceEstimate, PhotoPrediction
from agegen.serve.batching import Batcher


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
    def cutter(self) -> FaceCutter:
        """What looks at the request's pictures."""
        return self.served.estimator.cutter.ask(self.min_score)

    def describe(self, cut: Cut, estimates: Sequence[FaceEstimate]) -> PhotoPrediction:
        """Return what was found in a picture."""
        if not self.distribution:
            estimates = [replace(estimate, distribution=None) for estimate in estimates]
        photo = self.served.estimator.describer.describe(cut, estimates)
        options = PredictConfig((), min_score=self.min_score, distribution=self.distribution).describe()
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
        model, weights = split_shipped(name)
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
