"""The subject of an evaluation: a model, the faces it runs on, and what the model's training knows of them.

:func:`open_subject` is shared by ``agegen eval``, ``compare``, ``calibrate`` and ``data check``. Which split a face was
in, and whether the training has seen it, is answered by :class:`TrainingSplit` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.batches.sources import SourceOptions, make_eval_source, scan_for
from agegen.data.duplicates import compute_fingerprints, match_fingerprints
from agegen.data.labels import Baseline, Labels, compute_baseline
from agegen.data.loading import load_sources, resolve_data
from agegen.data.records import FaceRecords
from agegen.data.scan import ProgressHook, Scan, ignore_progress
from agegen.data.splits import (
    HASH_COLUMN,
    apply_split,
    find_training_overlap,
    fingerprint_split,
    read_split,
    split_scan,
    unpack_hashes,
)
from agegen.errors import CheckpointError, DataError
from agegen.evaluate.estimates import Estimates, estimate_batches
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.detection import add_cropper
from agegen.faces.matching import (
    LandmarkStats,
    make_crop_notices,
    make_margin_notices,
    match_crops,
    read_crop_boxes,
)
from agegen.machine import Compute
from agegen.model.calibration import Calibration, read_calibration
from agegen.model.checkpoint import UsedFaces, load_checkpoint, read_used_faces
from agegen.model.metadata import CheckpointInfo
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_checkpoint, is_hub_run
from agegen.options import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.runs import (
    RunFolder,
    describe_damaged_runs,
    find_newest_run,
    is_standalone_file,
    list_finished_runs,
    list_sources,
    open_run,
)

if TYPE_CHECKING:
    import pandas as pd

# A choice of `select_faces`, next to the names of the splits.
ALL_FACES = "all"


@dataclass(frozen=True)
class TrainingSplit:
    """What is known of the faces that a model was trained with.

    Attributes:
        table: the split of its run; see :func:`agegen.data.splits.split_scan`. None without it.
        used: what the checkpoint remembers of the faces; None if it remembers nothing.
    """

    table: pd.DataFrame | None = None
    used: UsedFaces | None = None

    @property
    def is_known(self) -> bool:
        """Whether it can be told which faces the training used."""
        return self.table is not None or self.used is not None

    def find_splits(self, sha256: Sequence[str]) -> NDArray[np.str_]:
        """Return the split (N,) that each face was in (train, val or test) by its checksum; "" if unknown."""
        if self.table is None:
            return np.full(len(sha256), "", dtype=str)
        known = dict(zip(self.table["sha256"], self.table["split"], strict=True))
        return np.array([known.get(digest, "") for digest in sha256], dtype=str)

    def find_seen(self, sha256: Sequence[str], hashes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which faces (N,) the training used, themselves or a near-duplicate; all False if that is unknown.

        ``hashes``: their perceptual hashes (N, 256).
        """
        seen = np.zeros(len(sha256), dtype=bool)
        if self.table is not None:
            seen |= find_training_overlap(self.table, sha256, hashes)
        if self.used is not None:
            seen |= match_fingerprints(compute_fingerprints(hashes), np.concatenate(self.used))
        return seen

    def find_hashes(self, sha256: Sequence[str]) -> NDArray[np.bool_]:
        """Return the perceptual hashes (N, 256) of faces that are all in the run's split."""
        known = {} if self.table is None else dict(zip(self.table["sha256"], self.table[HASH_COLUMN], strict=True))
        return unpack_hashes(known[digest] for digest in sha256)


@dataclass(frozen=True)
class EvaluationSubject:
    """A model and the N faces to evaluate it on.

    Attributes:
        run: the model's run folder; None for weights without one: bundled, in a single file, or on the Hub.
        checkpoint: the file that was loaded as ``info`` and ``model``.
        data: the datasets; ``own_data`` says whether they are those of the run, by default and not by ``--data``.
        scan: the readable images, cropped as the model expects them.
        training: the split that the model was trained with.
        splits: the model's split (N,) of each face; "" if unknown.
        seen: whether the training has used each face (N,) or a near-duplicate.
        notices: what the user should know about how the images are cropped.
    """

    run: RunFolder | None
    checkpoint: Path
    info: CheckpointInfo
    model: AgeGenderModel
    data: tuple[str, ...]
    own_data: bool
    scan: Scan
    training: TrainingSplit
    splits: NDArray[np.str_]
    seen: NDArray[np.bool_]
    notices: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The run folder, or the checkpoint of weights without one."""
        return self.checkpoint if self.run is None else self.run.path

    @property
    def source(self) -> str:
        """The names of the datasets."""
        return " + ".join(self.data)

    @property
    def calibration(self) -> Calibration:
        """The calibration in the checkpoint."""
        return read_calibration(self.info.calibration)

    @property
    def baseline(self) -> Baseline:
        """The constant baseline of the training set; that of these faces if the checkpoint has none."""
        try:
            return Baseline(**self.info.training["baseline"])
        except (KeyError, TypeError):
            return compute_baseline(self.scan.records.frame)

    def select_faces(self, split: str) -> tuple[NDArray[np.bool_], int]:
        """Return which faces (N,) to evaluate, and the number of faces left out because the training used them.

        The model's own split is used if it covers all faces. On other data, ``test`` means all faces that the training
        has not used, of the data's own test set if there is a column ``split``; ``all`` means all faces.

        Raises:
            DataError: the split is unknown, or no face is in it.
        """
        if split == ALL_FACES:
            return np.ones(len(self.splits), dtype=bool), 0
        candidates = self._find_candidates(split)
        own = bool((self.splits != "").all())
        unseen = candidates & ~self.seen
        if own or split == "train" or not candidates.any():
            unseen = candidates
        if not unseen.any():
            reason = "is new to the model: its training used all" if candidates.any() else f"is in the split '{split}'"
            raise DataError(f"no face of {self.source} {reason}. Evaluate all of them with --split all.")
        return unseen, int(candidates.sum() - unseen.sum())

    def _find_candidates(self, split: str) -> NDArray[np.bool_]:
        """Return which faces (N,) belong to a split: the model's, the data's, or all of data without a split."""
        if (self.splits != "").all():
            return np.asarray(self.splits == split, dtype=bool)
        frame = self.scan.records.frame
        if "split" in frame.columns:
            # Of datasets without a split all faces are test faces.
            given = frame["split"].replace("", "test").to_numpy(dtype=str)
            return np.asarray(given == split, dtype=bool)
        if split == "test" and self.training.is_known:
            return np.ones(len(frame), dtype=bool)
        raise DataError(
            f"the split '{split}' of the faces of {self.source} is unknown: the model does not know which of them its "
            "training used, and they have no column 'split'. Evaluate all of them with --split all."
        )

    def estimate(
        self,
        chosen: NDArray[np.bool_],
        compute: Compute,
        cache_dir: Path | None = None,
        on_progress: ProgressHook = ignore_progress,
        keep: bool = False,
    ) -> tuple[Estimates, Labels]:
        """Run the model on the ``chosen`` (N,) faces; return estimates, and labels of what the model can estimate.

        Args:
            chosen: the faces.
            compute: device and precision.
            cache_dir: of the features of a frozen backbone; None for the default.
            on_progress: called with (stage, done, total).
            keep: whether to keep the age distributions.

        Raises:
            CheckpointError: the model gives NaN or infinite estimates.
        """
        options = SourceOptions(compute, 0, cache_dir=cache_dir)
        network, source = make_eval_source(self.model, self.scan, chosen, options, on_progress)
        estimates = estimate_batches(network.to(compute.device), source, compute, keep=keep)
        if not estimates.finite:
            raise CheckpointError(f"{self.checkpoint} gives NaN or infinite estimates: its weights are damaged")
        return estimates, source.labels if self.calibration.knows_age else source.labels.drop_ages()

    def describe_overlap(self) -> list[str]:
        """Return a notice if it is unknown which of the faces the training used."""
        if self.training.is_known:
            return []
        return ["the overlap with the model's training set is unknown: the checkpoint does not contain it"]


def open_subject(
    data: Sequence[str] = (),
    run: Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    detector: str | None = None,
    reading: ReadOptions = DEFAULT_READ_OPTIONS,
    on_progress: ProgressHook = ignore_progress,
    scan: Scan | None = None,
) -> EvaluationSubject:
    """Load a model and the faces to evaluate it on.

    Args:
        data: the datasets; by default those of the run.
        run: a run folder, a checkpoint file, or ``hf://OWNER/NAME``. Without ``run``, ``model`` and ``weights``, the
            newest finished run under ``./runs``; if there is none, the bundled weights (which require ``data``).
        model: a model with bundled weights, instead of a run; ``weights`` names one of several.
        weights: see ``model``.
        detector: a face detector, if the images are uncropped photos.
        reading: how labels are read.
        on_progress: called with (stage, done, total).
        scan: of the data, if it has been scanned already.

    Raises:
        AgegenError: the model, its plugin or the data cannot be used.
    """
    folder, checkpoint = _find_model(run, model, weights, bool(data))
    info, network = load_checkpoint(checkpoint)
    record = folder.read() if folder is not None and not data else None
    sources = resolve_data(data) if record is None else list_sources(record)
    if scan is None:
        records = load_sources(sources, reading if record is None else reading.fill_from(record))
        records, notices = _crop_as_trained(records, info, record, detector)
        scan = scan_for(network.backbone, records, on_progress)
    else:
        records, notices = _crop_as_trained(scan.records, info, record, detector)
        scan = replace(scan, records=records)
    scan, training = _find_training_split(scan, info, folder, checkpoint, own_data=record is not None)
    splits = training.find_splits(scan.sha256)
    return EvaluationSubject(
        run=folder,
        checkpoint=checkpoint,
        info=info,
        model=network,
        data=sources,
        own_data=record is not None,
        scan=scan,
        training=training,
        splits=splits,
        # Near-duplicates across the model's own splits, if any, are reported by the training and stay in the test set.
        seen=splits == "train" if (splits != "").all() else training.find_seen(scan.sha256, scan.hashes),
        notices=(*_describe_skipped_runs(folder, run, model or weights), *notices),
    )


def read_training_split(run: RunFolder) -> TrainingSplit:
    """Return the split that a run was trained with.

    Raises:
        DataError: its split.csv is missing, damaged or another one.
    """
    return TrainingSplit(_read_own_split(run), read_used_faces(run.checkpoint))


def _read_own_split(run: RunFolder) -> pd.DataFrame:
    """Return the split in a run folder, after checking that the run was trained with it: a test set must be unseen."""
    table = read_split(run.split)
    known = run.read()["data"].get("fingerprint")
    if known not in (None, fingerprint_split(table)):
        raise DataError(
            f"{run.split} is not the split that this training used, by the fingerprint in run.json. Restore it, or "
            f"move {run.checkpoint.name} out of {run.path} to use it on its own."
        )
    return table


def _find_model(
    run: Path | None, model: str | None, weights: str | None, has_data: bool
) -> tuple[RunFolder | None, Path]:
    """Return the run folder, if there is one, and the checkpoint."""
    standalone = run is not None and (is_hub_run(run) or is_standalone_file(run))
    bundled = model is not None or weights is not None
    if standalone or bundled or (run is None and has_data and not list_finished_runs()):
        return None, find_checkpoint(model, run, weights)
    folder = find_newest_run() if run is None else open_run(run)
    return folder, folder.verify(folder.checkpoint)


def _describe_skipped_runs(chosen: RunFolder | None, run: Path | None, bundled: str | None) -> list[str]:
    """Return a notice for each damaged run that may have been meant, if none was named."""
    if run is not None or bundled is not None:
        return []
    return describe_damaged_runs(after=chosen)


def _crop_as_trained(
    records: FaceRecords, info: CheckpointInfo, record: dict[str, Any] | None, detector: str | None
) -> tuple[FaceRecords, list[str]]:
    """Return the records with the model's crop, and notices about it.

    The crop is made by ``detector`` or that of the run's ``record``; else it is the one that the record or the
    checkpoint has for these datasets; else it is measured.
    """
    template = AlignmentTemplate.from_json(info.crop) if info.crop is not None else None
    chosen = detector or (record or {}).get("options", {}).get("detector")
    records = add_cropper(records, chosen, template)
    if chosen:
        return records, []
    if record is not None:
        return replace(records, trims=read_crop_boxes(record["data"].get("trims", {}))), []
    if records.drawn:
        return records, []
    if (known := read_crop_boxes(info.training.get("trims") or {})) and set(known) <= set(records.sources):
        return replace(records, trims=known), []
    surveys: list[LandmarkStats] = []
    wanted = template or AlignmentTemplate()
    trims = match_crops(records, wanted, surveys)
    found = (notice for stats in surveys for notice in (*make_crop_notices(stats), *make_margin_notices(stats, wanted)))
    notices = list(dict.fromkeys(found))
    if notices:
        notices.append("faces that the training used are only recognized in images that are cropped like its own")
    return replace(records, trims=trims if template is not None else {}), notices


def _find_training_split(
    scan: Scan, info: CheckpointInfo, folder: RunFolder | None, checkpoint: Path, own_data: bool
) -> tuple[Scan, TrainingSplit]:
    """Return the split of the model's training; on its own data also restrict the faces to those of the split.

    Without a run folder it is recovered on the same data: data and seed give the same split, which the checkpoint's
    fingerprint confirms. On any other data, the checkpoint knows the faces that its training used.
    """
    used = read_used_faces(checkpoint)
    if folder is None:
        table = split_scan(scan, int(info.training.get("seed", 0)))
        known = fingerprint_split(table) == info.training.get("split")
        return scan, TrainingSplit(table if known else None, used)
    table = _read_own_split(folder)
    if own_data:
        scan, table = apply_split(scan, table, "the run's split.csv")
    return scan, TrainingSplit(table, used)
