"""``agegen export``: a run's model as float16 weights with a model card, or as ONNX, in float32 or int8."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from agegen.batches.images import Pixels
from agegen.data.duplicates import compute_fingerprints, match_fingerprints
from agegen.data.labels import Labels
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.engines.engine import ONNX_SUFFIX, CropOutputs, OnnxEngine
from agegen.engines.onnx_export import convert_checked, encode_model, export_onnx, quantize_model
from agegen.errors import AgegenError, DataError
from agegen.evaluate.metrics import measure_distance
from agegen.evaluate.subject import EvaluationSubject, open_subject
from agegen.export.card import write_card
from agegen.files import digest_file, write_bytes
from agegen.machine import open_session
from agegen.model.calibration import (
    MIN_INTERVAL_FACES,
    Calibration,
    bound_ages,
    calibrate,
    describe_weaknesses,
    read_calibration,
)
from agegen.model.checkpoint import load_checkpoint, read_used_faces, save_checkpoint
from agegen.model.weights import CARD_FILE, find_weights, parse_weights_name
from agegen.options import Int8Part
from agegen.runs import RunFolder, is_standalone_file, open_run

# Faces on which the ranges of activations are measured. Their extremes hardly change beyond some hundred.
CALIBRATION_FACES = 256
# The largest loss of accuracy in int8: a quarter of what the MAE and the accuracy of gender on 2,000 test faces are
# uncertain by (95 % intervals of ±0.2 years and ±1.1 points), so that nobody could tell from a test set.
MAX_YEARS, MAX_SHARE = 0.05, 0.003
# A loss counts if it is beyond doubt: on one side, 95 % of a normal distribution are within so many standard errors.
_Z_95 = 1.645
# Faces per batch, as in prediction.
_BATCH = 64


@dataclass(frozen=True)
class Int8Options:
    """How to export to int8.

    Attributes:
        data: the datasets with the faces to calibrate and verify on; () for those of the run.
        exclude: the parts that stay in float32.
    """

    data: tuple[str, ...] = ()
    exclude: tuple[Int8Part, ...] = ()


@dataclass(frozen=True)
class MetricChange:
    """A metric of the same faces in float32 and in int8.

    Attributes:
        name: ``mae`` (years), ``in_bracket``, ``accuracy`` (of gender) or ``coverage`` (of the intervals), 0–1.
        faces: the number of faces.
        fp32: the metric in float32, ``int8`` that in int8.
        error: the standard error of the difference of the two, which is measured in pairs: for each face.
        limit: the largest loss that is accepted; None for the coverage, which the new calibration restores.
    """

    name: str
    faces: int
    fp32: float
    int8: float
    error: float
    limit: float | None

    @property
    def loss(self) -> float:
        """How much worse int8 is; negative if it is better."""
        return self.int8 - self.fp32 if self.name == "mae" else self.fp32 - self.int8

    @property
    def excessive(self) -> bool:
        """Whether the faces show, with 95 % confidence, a loss above the limit.

        A few validation faces do not: of 50, one whose gender changes is a loss of 2 points. A limit for the observed
        loss would refuse such models at random, one that requires proof that it is small would refuse them always.
        """
        return self.limit is not None and self.loss - _Z_95 * self.error > self.limit


@dataclass(frozen=True)
class Int8Result:
    """An ONNX file in int8.

    Attributes:
        changes: of the metrics on the validation faces.
        calibration_faces: the number of faces on which the ranges of activations were measured.
        calibration: of the intervals and the gender threshold, fitted to the estimates in int8.
        notices: what the user should know about the faces.
    """

    changes: tuple[MetricChange, ...]
    calibration_faces: int
    calibration: Calibration
    notices: tuple[str, ...]


def export_run(
    run: Path, weights: Path | None = None, onnx: Path | None = None, repeats: tuple[Path, ...] = ()
) -> list[Path]:
    """Write the requested files of a finished run's best model; return their paths.

    If both are requested, the ONNX file is exported from the written weights, so that the two files match. ``repeats``
    are further runs of the same command, for the model card. For ONNX alone, ``run`` may also be a checkpoint file or
    the name of bundled weights.

    Raises:
        AgegenError: no file is requested, the run is not finished or not usable, or a file cannot be written.
    """
    source, written = _prepare_source(run, weights, onnx, repeats)
    if onnx is not None:
        export_onnx(source, onnx)
        written.append(onnx)
    return written


def export_int8(
    run: Path,
    onnx: Path | None,
    options: Int8Options,
    weights: Path | None = None,
    repeats: tuple[Path, ...] = (),
    on_progress: ProgressHook = ignore_progress,
) -> tuple[list[Path], Int8Result]:
    """Write a model as ONNX that computes in int8, and the requested weights; the arguments are those of the above.

    The ranges of activations are measured on faces of the training split. Intervals and gender threshold are fitted to
    the estimates in int8 of the validation split, on which they are also compared with those in float32.

    Raises:
        AgegenError: see :func:`export_run`; also if the faces are missing, or int8 costs too much accuracy.
    """
    if onnx is None:
        raise AgegenError("--int8 requires --onnx FILE.onnx")
    source, written = _prepare_source(run, weights, onnx, repeats)
    subject = _open_faces(run, source, options.data, on_progress)
    faces = choose_faces(subject)
    info, model = load_checkpoint(source)
    proto = convert_checked(info, model)
    quantized = quantize_model(proto, _read_crops(subject, faces.calibration), options.exclude)
    crops, labels = _read_crops(subject, faces.validation), _pick_labels(subject, faces.validation)
    plain, outputs = (_estimate(encode_model(one, info), crops, on_progress) for one in (proto, quantized))
    fitted = _fit_calibration(outputs, labels, subject, faces.validation)
    changes = compare_outputs(plain, outputs, labels, read_calibration(info.calibration), fitted)
    check_changes(changes)
    described = _describe_export(changes, len(faces.calibration), options)
    info = replace(info, calibration=fitted.to_json())
    write_bytes(onnx, encode_model(quantized, info, digest_file(source), described))
    notices = (*subject.notices, *faces.notices, *describe_weaknesses(fitted))
    return [*written, onnx], Int8Result(changes, len(faces.calibration), fitted, notices)


def _pick_labels(subject: EvaluationSubject, rows: NDArray[np.int64]) -> Labels:
    """Return the labels (n,) of what the model can estimate."""
    labels = subject.scan.records.labels.pick(rows)
    return labels if subject.calibration.knows_age else labels.drop_ages()


def _fit_calibration(
    outputs: CropOutputs, labels: Labels, subject: EvaluationSubject, rows: NDArray[np.int64]
) -> Calibration:
    """Return the calibration of the estimates of some faces (n,), as at the end of a training."""
    knows_age = subject.calibration.knows_age
    # Without ages, those of the bands in which gender is unreliable would be arbitrary.
    ages = outputs.age if knows_age else np.zeros_like(outputs.age)
    origins = subject.scan.records.list_face_sources()[rows]
    return replace(calibrate(ages, outputs.spread, outputs.p_female, labels, origins), knows_age=knows_age)


def _prepare_source(
    run: Path, weights: Path | None, onnx: Path | None, repeats: tuple[Path, ...]
) -> tuple[Path, list[Path]]:
    """Return the checkpoint to export to ONNX, and the files that were written: the requested weights."""
    _check_suffix(weights, ".safetensors")
    _check_suffix(onnx, ONNX_SUFFIX)
    if weights is None and onnx is None:
        raise AgegenError("nothing to export. Give --weights FILE.safetensors, --onnx FILE.onnx, or both.")
    if weights is None and (bundled := parse_weights_name(str(run))):
        return find_weights(*bundled), []
    if weights is None and is_standalone_file(run):
        return run, []
    folder = open_run(run)
    folder.verify(folder.checkpoint)
    if weights is None:
        return folder.checkpoint, []
    return weights, export_weights(folder, weights, repeats)


class Int8Faces(NamedTuple):
    """Rows of the faces to measure activations on, and of those to verify and calibrate intervals on."""

    calibration: NDArray[np.int64]
    validation: NDArray[np.int64]
    notices: tuple[str, ...]


def _open_faces(run: Path, source: Path, data: tuple[str, ...], on_progress: ProgressHook) -> EvaluationSubject:
    """Return the faces to calibrate on, with what the model knows of them.

    Raises:
        DataError: there are none; the error says how to give them.
    """
    folder = run if run.exists() and not is_standalone_file(run) else source
    if not data and folder is source:
        raise DataError(
            "--int8 is calibrated on faces, which a model without a run folder does not name. Give --data PATH."
        )
    try:
        return open_subject(data, folder, on_progress=on_progress)
    except DataError as error:
        if data:
            raise
        raise DataError(
            f"--int8 is calibrated on the faces of the run; give others with --data PATH: {error}"
        ) from error


def choose_faces(subject: EvaluationSubject) -> Int8Faces:
    """Return the faces of the training and the validation split; of other data, some and the rest.

    Raises:
        DataError: there are too few.
    """
    parts = _find_parts(subject)
    rng = np.random.default_rng(0)
    train, val, new = (np.flatnonzero(parts == name) for name in ("train", "val", ""))
    notices = subject.describe_overlap()
    if not len(train):
        # Any faces show the ranges of activations, but those that are left verify the model.
        train = rng.permutation(new)[: min(CALIBRATION_FACES, len(new) // 2)]
        new = np.setdiff1d(new, train)
    if len(val) < MIN_INTERVAL_FACES:
        val = max(val, new, key=len)
    # With fewer, not even intervals could be fitted.
    if not len(train) or len(val) < MIN_INTERVAL_FACES:
        raise DataError(
            f"--int8 is verified on at least {MIN_INTERVAL_FACES} validation faces, or others that the training has "
            f"not used; {subject.source} has {len(val)}. Give more with --data PATH."
        )
    return Int8Faces(np.sort(rng.permutation(train)[:CALIBRATION_FACES]), val, tuple(notices))


def _find_parts(subject: EvaluationSubject) -> NDArray[np.str_]:
    """Return the split (N,) in which the training used each face; "" for faces that it did not know."""
    used = subject.training.used
    if (subject.splits != "").all() or used is None:
        return subject.splits
    fingerprints = compute_fingerprints(subject.scan.hashes)
    parts = np.full(len(fingerprints), "", dtype="<U5")
    for name in ("val", "train"):
        parts[match_fingerprints(fingerprints, getattr(used, name))] = name
    return parts


def _read_crops(subject: EvaluationSubject, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the crops (n, size, size, 3) of some faces, as the model gets them."""
    pixels = Pixels(subject.scan.records, subject.model.backbone.input_spec.size, subject.scan.pixels, rows)
    return np.stack([pixels[index] for index in range(len(rows))])


def _estimate(content: bytes, crops: NDArray[np.uint8], on_progress: ProgressHook) -> CropOutputs:
    """Return the outputs of an ONNX file's content for crops (n, size, size, 3)."""
    engine = OnnxEngine(open_session(content, threads=1), crops.shape[1])
    parts = []
    for start in range(0, len(crops), _BATCH):
        parts.append(engine.run(crops[start : start + _BATCH])[:3])
        on_progress("comparing int8 with float32", min(start + _BATCH, len(crops)), len(crops))
    return CropOutputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare_outputs(
    fp32: CropOutputs, int8: CropOutputs, labels: Labels, before: Calibration, after: Calibration
) -> tuple[MetricChange, ...]:
    """Return how int8 changes each metric that the labels of n faces allow; see :class:`MetricChange`."""
    exact, bracketed, gendered = labels.exact, labels.bracketed, labels.gendered

    def miss(outputs: CropOutputs) -> NDArray[Any]:
        return np.asarray(np.abs(outputs.age - labels.low))[exact]

    def hit(outputs: CropOutputs) -> NDArray[Any]:
        return np.asarray(measure_distance(outputs.age, labels.low, labels.high) == 0)[bracketed]

    def right(outputs: CropOutputs) -> NDArray[Any]:
        return np.asarray((outputs.p_female >= 0.5) == (labels.female > 0.5))[gendered]

    def inside(outputs: CropOutputs, calibration: Calibration) -> NDArray[Any]:
        low, high = bound_ages(outputs.age, outputs.spread, calibration)
        return np.asarray((low <= labels.low) & (labels.low <= high))[exact]

    measured = [
        _compare("mae", miss(fp32), miss(int8), MAX_YEARS),
        _compare("in_bracket", hit(fp32), hit(int8), MAX_SHARE),
        _compare("accuracy", right(fp32), right(int8), MAX_SHARE),
        _compare("coverage", inside(fp32, before), inside(int8, after), None),
    ]
    return tuple(change for change in measured if change is not None)


def _compare(name: str, fp32: NDArray[Any], int8: NDArray[Any], limit: float | None) -> MetricChange | None:
    """Return the change of a metric's mean over n faces, from its values (n,) of each face; None without faces."""
    n = len(fp32)
    if not n:
        return None
    fp32, int8 = fp32.astype(float), int8.astype(float)
    error = float(np.std(int8 - fp32, ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    return MetricChange(name, n, float(fp32.mean()), float(int8.mean()), error, limit)


def check_changes(changes: Sequence[MetricChange]) -> None:
    """Check that int8 costs little accuracy.

    Raises:
        AgegenError: the faces show that it costs more than a limit.
    """
    for change in changes:
        if change.excessive:
            assert change.limit is not None
            points = change.name != "mae"
            loss, limit = (f"{100 * x:.1f} points" if points else f"{x:.2f} years" for x in (change.loss, change.limit))
            name = {"mae": "MAE", "in_bracket": "bracket accuracy"}.get(change.name, "gender accuracy")
            raise AgegenError(
                f"int8 costs {loss} of {name} on {change.faces:,} faces, more than {limit}. Keep a part in float32: "
                "--exclude first, --exclude heads, or both."
            )


def _describe_export(changes: Sequence[MetricChange], faces: int, options: Int8Options) -> str:
    """Return what the file stores about its export, as JSON."""
    rows = {
        change.name: {
            "faces": change.faces,
            "fp32": round(change.fp32, 5),
            "int8": round(change.int8, 5),
            "error": round(change.error, 5),
        }
        for change in changes
    }
    return json.dumps({"calibration_faces": faces, "excluded": list(options.exclude), "changes": rows})


def export_weights(run: RunFolder, weights: Path, repeats: tuple[Path, ...]) -> list[Path]:
    """Write a run's best weights as float16 safetensors, and ``MODEL_CARD.md`` in the same folder; return both paths.

    Raises:
        AgegenError: the run is not finished, a value exceeds float16's range, or a file cannot be written.
    """
    info, model = load_checkpoint(run.checkpoint)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise AgegenError(f"{run.checkpoint}: the tensor {name} has values too large for half precision")
    # Older runs have the crop boxes only in run.json. With them, the same dataset gets the same split again.
    trims = run.read()["data"].get("trims", {})
    info = replace(info, training={"trims": trims, **info.training})
    save_checkpoint(weights, model.half(), info, read_used_faces(run.checkpoint))
    card = weights.parent / CARD_FILE
    write_card(card, run, weights, tuple(open_run(path) for path in repeats))
    return [weights, card]


def _check_suffix(path: Path | None, suffix: str) -> None:
    if path is not None and path.suffix != suffix:
        raise AgegenError(f"invalid file name: {path}. It must end in {suffix}.")
