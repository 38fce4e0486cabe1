"""Export to int8: what the file holds, which file is loaded, and when an export is refused."""

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from agegen import Estimator
from agegen.backbone import Backbone, InputSpec, TrainingDefaults
from agegen.data.images import decode_image, resize_image
from agegen.data.labels import Labels
from agegen.data.loading import load_records
from agegen.engines.engine import CHECKED_KEY, INT8_KEY, SOURCE_KEY, CropOutputs, load_onnx
from agegen.engines.loading import load_engine
from agegen.engines.onnx_export import convert_model, export_onnx, quantize_model
from agegen.errors import AgegenError, CheckpointError
from agegen.export.export import check_changes, compare_outputs
from agegen.files import digest_file
from agegen.model.calibration import UNCALIBRATED, calibrate, read_calibration
from agegen.model.checkpoint import describe_model, save_checkpoint
from agegen.model.network import AgeGenderModel
from agegen.options import Int8Part
from agegen.plugins import Plugin
from agegen.serve.models import load_models

FACES = 120


class Tiny(Backbone):
    input_spec = InputSpec(size=32)
    feature_dim = 16
    defaults = TrainingDefaults(epochs=1, lr=1e-2, batch_size=8)

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()
        )

    def forward(self, images):
        return self.layers(images).mean(dim=(2, 3))


PLUGIN = Plugin("scratch", "agegen", "0", EntryPoint("scratch", f"{__name__}:Tiny", "agegen.backbones"))


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Make ``scratch`` the tiny backbone."""
    monkeypatch.setattr("agegen.model.checkpoint.load_backbone", lambda name: (PLUGIN, Tiny))


@pytest.fixture(scope="module")
def faces(tmp_path_factory, draw_folder):
    return draw_folder(tmp_path_factory.mktemp("int8") / "faces", FACES)


def make_model():
    torch.manual_seed(1)
    return AgeGenderModel(Tiny()).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory, faces, agegen):
    """A checkpoint with an ONNX file in float32 and one in int8, and the output of the export to int8."""
    folder = tmp_path_factory.mktemp("int8") / "model"
    checkpoint, model = folder / "tiny.safetensors", make_model()
    info = describe_model(PLUGIN, model, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agegen.model.checkpoint.load_backbone", lambda name: (PLUGIN, Tiny))
        save_checkpoint(checkpoint, model, info)
        export_onnx(checkpoint, folder / "tiny.onnx")
        target = folder / "tiny.int8.onnx"
        done = agegen("export", checkpoint, "--onnx", target, "--int8", "--data", faces)
    assert done.exit_code == 0, done.stderr
    return checkpoint, done


@pytest.fixture(scope="module")
def converted():
    return convert_model(make_model(), "tiny")


def read_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_export_shows_and_stores_what_int8_changes(files):
    checkpoint, done = files
    target = checkpoint.with_name("tiny.int8.onnx")
    assert done.stdout.startswith(f"{target} (")
    for words in ("MAE (years)", "gender accuracy", "90 % interval", "activations measured on 60 faces"):
        assert words in done.stderr
    metadata = read_metadata(target)
    stored = json.loads(metadata[INT8_KEY])
    assert (stored["calibration_faces"], stored["excluded"]) == (FACES // 2, [])
    assert set(stored["changes"]) == {"mae", "accuracy", "coverage"}
    assert stored["changes"]["mae"]["faces"] == FACES // 2
    assert abs(stored["changes"]["mae"]["int8"] - stored["changes"]["mae"]["fp32"]) < 1
    assert metadata[SOURCE_KEY] == digest_file(checkpoint)
    assert metadata[CHECKED_KEY] == "sha256"


def test_the_calibration_is_fitted_to_the_estimates_in_int8(files, faces):
    """On the half of the faces on which the activations were not measured."""
    checkpoint, _ = files
    info, engine = load_onnx(checkpoint.with_name("tiny.int8.onnx"))
    records = load_records(str(faces))
    measured = np.random.default_rng(0).permutation(FACES)[: FACES // 2]
    rows = np.setdiff1d(np.arange(FACES), measured)
    crops = np.stack([resize_image(records.decode(int(row)), 32) for row in rows])
    outputs = engine.run(crops)
    wanted = calibrate(outputs.age, outputs.spread, outputs.p_female, records.labels.pick(rows))
    found = read_calibration(info.calibration)
    assert found.faces == wanted.faces == FACES // 2
    assert found.interval_scale == pytest.approx(wanted.interval_scale, rel=1e-3)
    assert found.min_confidence == pytest.approx(wanted.min_confidence)


def test_the_products_compute_in_int8(files):
    """In the QDQ format, with 7-bit weights per channel, unsigned activations, and nothing else quantized."""
    graph = onnx.load(files[0].with_name("tiny.int8.onnx")).graph
    made_by = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(products) == 6
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in products:
        assert made_by[node.input[0]].op_type == made_by[node.input[1]].op_type == "DequantizeLinear"
        weight, scale, _ = made_by[node.input[1]].input
        assert tensors[weight].dtype == np.int8
        assert np.abs(tensors[weight].astype(int)).max() <= 64
        assert tensors[scale].size > 1 or tensors[weight].shape[0] == 1
    for name in CropOutputs._fields:
        assert made_by[name].op_type != "DequantizeLinear"


@pytest.mark.parametrize(("exclude", "remaining"), [((), 6), (("first",), 5), (("heads",), 2), (("first", "heads"), 1)])
def test_parts_can_stay_in_float32(converted, exclude, remaining):
    crops = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    graph = quantize_model(converted, crops, tuple(map(Int8Part, exclude))).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert sum(node.input[1] in dequantized for node in products) == remaining
    if "first" in exclude:
        assert products[0].op_type == "Conv" and products[0].input[1] not in dequantized


@pytest.mark.parametrize(
    ("precision", "engine", "chosen"),
    [
        ("auto", "auto", ("onnx", "int8")),
        ("auto", "onnx", ("onnx", "int8")),
        ("int8", "onnx", ("onnx", "int8")),
        ("fp32", "auto", ("onnx", "fp32")),
        ("fp32", "torch", ("torch", "fp32")),
        ("bf16", "auto", ("torch", "bf16")),
    ],
)
def test_precision_and_engine_choose_the_file(files, precision, engine, chosen):
    _, loaded = load_engine(files[0], engine, "cpu", precision)
    assert (loaded.name, loaded.precision, loaded.notice) == (*chosen, "")


def test_the_estimates_are_those_of_the_chosen_file(files, faces):
    checkpoint, photo = files[0], next(iter(faces.iterdir()))
    crop = resize_image(decode_image(photo.read_bytes()), 32)[None]
    for precision, name in (("auto", "tiny.int8.onnx"), ("fp32", "tiny.onnx")):
        estimator = Estimator.load(run=checkpoint, detector="none", precision=precision)
        wanted = load_onnx(checkpoint.with_name(name))[1].run(crop).p_female[0]
        # Rows have four digits.
        assert estimator.predict(photo)[0].p_female == pytest.approx(wanted, abs=6e-5)
        assert estimator.model.name.endswith(" int8") == (precision == "auto")
        assert estimator.model.digest == digest_file(checkpoint)


@pytest.mark.parametrize(("precision", "chosen"), [("auto", "int8"), ("fp32", "fp32")])
def test_the_service_uses_the_chosen_file(files, precision, chosen):
    (served,) = load_models((), (str(files[0]),), "none", lambda name, faces: None, precision).values()
    assert served.to_json()["precision"] == served.estimator.model.engine.precision == chosen
    served.batcher.close(10)


@pytest.mark.parametrize(
    ("file", "precision", "engine", "message"),
    [
        ("tiny.safetensors", "int8", "torch", "--precision int8 requires onnxruntime"),
        ("tiny.onnx", "int8", "auto", "computes in fp32, not in int8"),
        ("tiny.int8.onnx", "fp32", "auto", "computes in int8, not in fp32"),
        ("tiny.int8.onnx", "bf16", "auto", "requires --engine onnx"),
    ],
)
def test_impossible_choices_are_one_line(files, file, precision, engine, message):
    with pytest.raises(AgegenError, match=message):
        load_engine(files[0].with_name(file), engine, "auto", precision)


def test_a_model_without_an_int8_file_says_how_to_write_it(agegen, files, tmp_path, portrait):
    checkpoint = shutil.copy(files[0], tmp_path / "tiny.safetensors")
    done = agegen("predict", portrait, "--run", checkpoint, "--precision", "int8")
    assert done.exit_code == 1
    assert "has no int8 file next to it" in done.stderr
    assert "--onnx tiny.int8.onnx --int8" in done.stderr


@pytest.mark.parametrize("fault", ["damaged", "of other weights", "fp32 by another name"])
def test_an_unusable_int8_file_is_not_used(files, tmp_path, fault):
    for path in files[0].parent.iterdir():
        shutil.copy(path, tmp_path / path.name)
    checkpoint, int8 = tmp_path / "tiny.safetensors", tmp_path / "tiny.int8.onnx"
    if fault == "damaged":
        int8.write_bytes(int8.read_bytes()[:-100])
    elif fault == "fp32 by another name":
        shutil.copy(tmp_path / "tiny.onnx", int8)
        with pytest.raises(CheckpointError, match="computes in fp32"):
            load_engine(checkpoint, precision="int8")
        return
    else:
        save_checkpoint(checkpoint, make_model(), describe_model(PLUGIN, make_model(), {"seed": 1}))
        export_onnx(checkpoint, tmp_path / "tiny.onnx")
    loaded = load_engine(checkpoint)[1]
    assert (loaded.name, loaded.precision) == ("onnx", "fp32")
    assert "(using tiny.onnx instead)" in loaded.notice
    with pytest.raises(CheckpointError, match=r"int8\.onnx"):
        load_engine(checkpoint, precision="int8")
    (tmp_path / "tiny.onnx").write_bytes(b"")
    loaded = load_engine(checkpoint)[1]
    assert loaded.name == "torch"
    assert "(using torch with tiny.safetensors instead)" in loaded.notice


def test_every_flipped_bit_is_noticed(files, tmp_path):
    content = files[0].with_name("tiny.int8.onnx").read_bytes()
    for place in map(int, np.random.default_rng(0).integers(0, len(content), 20)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "model.onnx").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_onnx(tmp_path / "model.onnx")


@pytest.mark.slow
def test_an_export_that_costs_accuracy_is_refused_and_not_written(agegen, files, faces, tmp_path, monkeypatch):
    monkeypatch.setattr("agegen.export.export.MAX_YEARS", -50)
    done = agegen("export", files[0], "--onnx", tmp_path / "a.onnx", "--int8", "--data", faces)
    assert done.exit_code == 1
    assert "of MAE on 60 faces" in done.stderr and "--exclude first" in done.stderr
    assert not (tmp_path / "a.onnx").exists()


def make_outputs(ages, p_female):
    return CropOutputs(np.asarray(ages, float), np.full(len(ages), 3.0), np.asarray(p_female, float))


@pytest.mark.parametrize(
    ("faces", "years", "flipped", "refused"),
    [
        (2000, 0.0, 0, None),
        (2000, 0.2, 0, "0.20 years of MAE"),
        (2000, -0.2, 0, None),
        (2000, 0.0, 40, "2.0 points of gender accuracy"),
        # One face of 50 is 2 points, and shows nothing.
        (50, 0.0, 1, None),
        (50, 0.0, 25, "50.0 points of gender accuracy"),
    ],
)
def test_losses_count_if_the_faces_show_them(faces, years, flipped, refused):
    """Compared in pairs: the errors of 5 years, which both have, add nothing to the uncertainty of the change."""
    rng = np.random.default_rng(0)
    ages = rng.integers(20, 60, faces).astype(np.float32)
    labels = Labels(ages, ages, np.ones(faces, np.float32))
    off = 5 + rng.random(faces)
    p_female = np.full(faces, 0.9)
    changed = np.where(np.arange(faces) < flipped, 0.1, p_female)
    plain = make_outputs(ages + off, p_female)
    int8 = make_outputs(ages + off + years + rng.normal(0, 0.1, faces), changed)
    changes = compare_outputs(plain, int8, labels, UNCALIBRATED, UNCALIBRATED)
    if refused is None:
        check_changes(changes)
        return
    with pytest.raises(AgegenError, match=refused):
        check_changes(changes)


def test_brackets_are_compared_too():
    low, high = np.full(100, 20, np.float32), np.full(100, 29, np.float32)
    labels = Labels(low, high, np.full(100, np.nan, np.float32))
    plain, int8 = (make_outputs(np.full(100, age), np.full(100, 0.9)) for age in (25, 35))
    (change,) = compare_outputs(plain, int8, labels, UNCALIBRATED, UNCALIBRATED)
    assert (change.name, change.fp32, change.int8, change.excessive) == ("in_bracket", 1, 0, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8",), "Give --weights FILE.safetensors, --onnx FILE.onnx, or both|--int8 requires --onnx"),
        (("--onnx", "a.onnx", "--int8"), "Give --data PATH"),
        (("--onnx", "a.onnx", "--data", "demo"), "--data and --exclude require --int8"),
        (("--onnx", "a.onnx", "--exclude", "heads"), "--data and --exclude require --int8"),
        (("--onnx", "a.onnx", "--int8", "--data", "gone"), "gone"),
    ],
)
def test_wrong_options_are_one_line(agegen, files, options, message):
    done = agegen("export", files[0], *options)
    assert done.exit_code == 1
    assert any(part in done.stderr for part in message.split("|"))
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path("a.onnx").exists()


def test_too_few_faces_are_refused(agegen, files, tmp_path, draw_folder):
    few = draw_folder(tmp_path / "few", 40)
    done = agegen("export", files[0], "--onnx", "a.onnx", "--int8", "--data", few)
    assert done.exit_code == 1
    assert "verified on at least 29 validation faces" in done.stderr and "has 20" in done.stderr


@pytest.mark.slow
def test_a_run_is_calibrated_and_verified_on_its_own_faces(agegen, trained_run, tmp_path, monkeypatch):
    from agegen.plugins import load_backbone

    monkeypatch.setattr("agegen.model.checkpoint.load_backbone", load_backbone)
    done = agegen("export", trained_run, "--onnx", tmp_path / "a.int8.onnx", "--int8")
    assert done.exit_code == 0, done.stderr
    stored = json.loads(read_metadata(tmp_path / "a.int8.onnx")[INT8_KEY])
    splits = (trained_run / "split.csv").read_text().splitlines()
    assert stored["calibration_faces"] == min(256, sum(",train" in line for line in splits))
    assert stored["changes"]["mae"]["faces"] == sum(",val" in line for line in splits)
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    record = (folder / "run.json").read_text()
    (folder / "run.json").write_text(record.replace('"demo"', '"/gone/faces"'))
    done = agegen("export", folder, "--onnx", tmp_path / "b.onnx", "--int8")
    assert (done.exit_code, "give others with --data PATH: " in done.stderr) == (1, True)
    assert len(done.stderr.strip().splitlines()) == 1
