"""The training loop: its events, its schedule, the average of the weights, and the choice of the best epoch."""

import math
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from torch import nn

from agegen.backbone import InputSpec
from agegen.batches.images import (
    EvalBatches,
    LabelledPixels,
    Pixels,
    TrainBatches,
    build_train_augmentation,
)
from agegen.data.demo import draw_records
from agegen.data.labels import AGE_CLASSES, read_labels
from agegen.data.scan import scan_images
from agegen.errors import AgegenError
from agegen.machine import choose_compute
from agegen.model.network import Outputs
from agegen.train.config import TrainConfig
from agegen.train.loop import (
    BatchResult,
    EpochResult,
    FitSettings,
    LossAlarm,
    QuickMetrics,
    TrainNotice,
    average_network,
    fit,
    make_optimizer,
    make_trainer,
    scale_lr,
    score_epoch,
)
from agegen.train.train import find_best, train_and_finish

SETTINGS = FitSettings(epochs=2, lr=1e-3, weight_decay=0.05)


@pytest.fixture(scope="module")
def data():
    scan = scan_images(draw_records(24), 32)
    frame = scan.records.frame
    pixels = Pixels(scan.records, 32, scan.pixels)
    return LabelledPixels(pixels, read_labels(frame))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, AGE_CLASSES + 1)

    def forward(self, images):
        values = self.layer(images.float().flatten(1) / 255)
        return Outputs(values[:, :-1], values[:, -1])


def run_fit(data, network, settings=SETTINGS, workers=0):
    train = TrainBatches(data, build_train_augmentation(InputSpec(32)), 8, 5, workers)
    trainer = make_trainer(network, settings, choose_compute("cpu", "fp32"))
    return list(fit(trainer, train, EvalBatches(data, 2))), trainer.averaged


def test_the_loop_yields_batches_and_epochs_in_order(data):
    events, _ = run_fit(data, Linear())
    assert [type(event) for event in events] == ([BatchResult] * 3 + [EpochResult]) * 2
    epochs = [event for event in events if isinstance(event, EpochResult)]
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert epochs[0].best
    assert epochs[1].train_loss < epochs[0].train_loss
    assert [event.batch for event in events[:3]] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_does_not_change_the_weights(data):
    states = []
    for workers in (0, 2):
        torch.manual_seed(5)
        _, averaged = run_fit(data, Linear(), SETTINGS, workers)
        states.append(averaged.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.usefixtures("quick_training")
def test_two_runs_with_one_seed_give_the_same_epochs(faces_folder, tmp_path):
    epochs = []
    for name in ("first", "second"):
        config = TrainConfig(
            "scratch", (str(faces_folder),), tmp_path / name, epochs=1, batch_size=16, seed=3, device="cpu", workers=1
        )
        events = [event for event in train_and_finish(config) if isinstance(event, EpochResult)]
        epochs.append([(event.train_loss, event.val_loss, event.val_mae, event.val_accuracy) for event in events])
    assert epochs[0] == epochs[1]


def test_a_nan_loss_stops_the_training_and_names_the_batch(data):
    class Broken(Linear):
        calls = 0

        def forward(self, images):
            self.calls += 1
            outputs = super().forward(images)
            return outputs if self.calls != 2 else Outputs(outputs.age_logits * math.nan, outputs.gender_logit)

    with pytest.raises(AgegenError, match=r"became NaN or infinite in epoch 1, batch 2; .*lower --lr: it is"):
        run_fit(data, Broken())


def test_an_epoch_with_nan_estimates_is_never_the_best(data):
    """NaN is also the value of metrics without labels, which do not count against an epoch."""

    class Unstable(Linear):
        def forward(self, images):
            outputs = super().forward(images)
            return outputs if self.training else Outputs(outputs.age_logits * math.nan, outputs.gender_logit)

    events, _ = run_fit(data, Unstable())
    epochs = [event for event in events if isinstance(event, EpochResult)]
    assert [math.isnan(epoch.val_mae) for epoch in epochs] == [True, True]
    assert not any(epoch.best for epoch in epochs)
    with pytest.raises(AgegenError, match="no epoch had a finite validation loss"):
        find_best(pd.DataFrame([asdict(epoch) for epoch in epochs]))


def make_epoch(number, val_loss):
    return EpochResult(number, 5.0, val_loss, math.nan, 0.9, 0.1, 1.0, 1.0, False, math.nan)


def test_a_validation_loss_far_above_that_at_the_start_gets_a_notice():
    alarm = LossAlarm(replace(SETTINGS, lr=0.1, default_lr=0.002))
    assert alarm.check(BatchResult(1, 1, 2, 7.4, 1.0)) is None
    assert alarm.check(BatchResult(1, 2, 2, 900.0, 1.0)) is None
    assert alarm.check(make_epoch(1, 20.0)) is None
    notice = alarm.check(make_epoch(2, 557_395.0))
    assert notice.startswith("the validation loss of epoch 2, 5.57e+05, is far above the loss at the start, 7.4")
    assert notice.endswith("lower --lr: it is 0.1, default 0.002")
    assert "is not finite" in alarm.check(make_epoch(3, math.nan))
    # A resumed training does not know the loss at its start.
    assert LossAlarm(SETTINGS).check(make_epoch(2, 557_395.0)) is None


@pytest.mark.slow
@pytest.mark.parametrize("lr", [10.0, 1000.0, 1e30])
def test_a_learning_rate_far_too_high_is_explained(faces_folder, tmp_path, lr):
    config = TrainConfig("scratch", (str(faces_folder),), tmp_path / "run", epochs=2, batch_size=12, workers=0, lr=lr)
    told = []
    try:
        for event in train_and_finish(config):
            told += event.notices if isinstance(event, TrainNotice) else []
    except AgegenError as error:
        told.append(str(error))
    assert any(f"lower --lr: it is {lr:g}, default 0.0" in line for line in told)


def test_metrics_without_labels_do_not_count_against_an_epoch():
    assert score_epoch(QuickMetrics(mae=5.0, in_bracket=math.nan, accuracy=math.nan)) == 5.0
    assert score_epoch(QuickMetrics(mae=math.nan, in_bracket=0.4, accuracy=0.9)) == pytest.approx(7.0)
    assert score_epoch(QuickMetrics(mae=5.0, in_bracket=0.7, accuracy=1.0)) == pytest.approx(4.0)


def test_the_average_follows_the_weights_and_copies_counters():
    network = nn.BatchNorm1d(2)
    averaged = average_network(network, 0.998)
    averaged.update_parameters(network)
    with torch.no_grad():
        network.weight.fill_(3.0)
    network.num_batches_tracked.fill_(7)
    for _ in range(3):
        averaged.update_parameters(network)
    assert 1.0 < averaged.module.weight[0] < 3.0
    assert averaged.module.num_batches_tracked == 7


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [scale_lr(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.0)


def test_biases_and_norms_have_no_weight_decay():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    network[0].bias.requires_grad_(False)
    decaying, free = make_optimizer(network, SETTINGS).param_groups
    assert [tuple(p.shape) for p in decaying["params"]] == [(3, 4)]
    assert len(free["params"]) == 2
    assert free["weight_decay"] == 0.0


def test_a_run_folder_has_the_documented_files(trained_run):
    # The hidden file is the lock.
    names = {path.name for path in trained_run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "run.json", "split.csv", "epochs.csv", "best.safetensors", "best.onnx", "eval.json", "predictions.parquet",
        "curves.png", "MODEL_CARD.md",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"lr": math.nan}, "--lr above 0"),
        ({"age_balance": 2.0}, "--age-balance must be between 0"),
        ({"soft_weight": -1.0}, "--soft-weight must be between 0"),
        ({"device": "tpu"}, "Invalid value for --device: 'tpu'"),
        ({"data": ("nowhere",)}, "no data at nowhere"),
        ({"model": "none"}, "unknown backbone 'none'"),
    ],
)
def test_invalid_options_are_one_line(tmp_path, options, message):
    config = TrainConfig(**{"model": "scratch", "data": ("demo",), "out": tmp_path / "run", **options})
    with pytest.raises(AgegenError, match=message):
        next(train_and_finish(config))
    assert not (tmp_path / "run").exists()
