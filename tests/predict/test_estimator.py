"""Every kind of image, from detection to the estimate; batches, threads and the order of results."""

import copy
import hashlib
import io
import itertools
import multiprocessing
import pickle
import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from agegen import Estimator
from agegen.engines.torch_engine import load_torch
from agegen.errors import AgegenError, DataError
from agegen.model.calibration import UNCALIBRATED
from agegen.model.weights import find_weights
from agegen.predict.estimator import WAITING, FaceModel, Waiting, group_items, stream_in_order

# The face of the portrait.
BOX = (175, 115, 355, 335)


@pytest.fixture(scope="module")
def estimator(trained_run):
    return Estimator.load(run=trained_run, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def image(portrait):
    return Image.open(portrait).convert("RGB")


@pytest.fixture(scope="module")
def expected(estimator, image):
    (face,) = estimator.predict(image)
    return face


def check(face, expected, tolerance=3.0):
    assert face.box == pytest.approx(expected.box, abs=12)
    assert face.age == pytest.approx(expected.age, abs=tolerance)
    assert face.status == "ok"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats(estimator, image, expected, tmp_path, kind):
    path = tmp_path / f"face.{kind.lower()}"
    image.save(path, kind)
    (face,) = estimator.predict(path)
    # GIF has 256 colours only.
    check(face, expected, 8.0 if kind == "GIF" else 3.0)
    assert (face.file, face.face, face.detector) == (str(path), 1, "mtcnn")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_modes(estimator, image, expected, tmp_path, mode):
    if mode == "I;16":
        changed = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        changed = image.convert(mode)
    path = tmp_path / ("face.tif" if mode in ("CMYK", "YCbCr") else "face.png")
    changed.save(path)
    (face,) = estimator.predict(path)
    assert face.box == pytest.approx(expected.box, abs=12)


def test_many_threads_give_the_results_of_one(estimator, image, tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.jpg" for number in range(8)]
    for number, path in enumerate(paths):
        image.rotate(4 * number - 14, fillcolor=(90, 90, 90)).save(path)
    found = []
    for cores in (1, 4):
        monkeypatch.setattr("agegen.machine.count_cores", lambda cores=cores: cores)
        found.append([face for photo in estimator.predict_many(paths) for face in photo.faces])
    one, many = found
    assert {face.file for face in one} == set(map(str, paths))
    assert [(face.file, face.box) for face in one] == [(face.file, face.box) for face in many]
    # Different batches give different last digits.
    assert [face.age for face in one] == pytest.approx([face.age for face in many], abs=1e-3)


def test_cmyk_jpeg(estimator, image, expected, tmp_path):
    image.convert("CMYK").save(tmp_path / "face.jpg", quality=95)
    (face,) = estimator.predict(tmp_path / "face.jpg")
    check(face, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(estimator, image, expected, tmp_path, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Image.Transpose of each orientation
    stored = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "face.jpg", exif=exif, quality=95)
    (face,) = estimator.predict(tmp_path / "face.jpg")
    check(face, expected)


def test_damaged_metadata_is_ignored(estimator, image, expected, tmp_path):
    image.save(tmp_path / "face.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage", quality=95)
    (face,) = estimator.predict(tmp_path / "face.jpg")
    check(face, expected)


def test_the_first_frame_of_an_animation_is_used(estimator, image, expected, tmp_path):
    black = Image.new("RGB", image.size)
    image.save(tmp_path / "face.gif", save_all=True, append_images=[black, black])
    (face,) = estimator.predict(tmp_path / "face.gif")
    check(face, expected, 8.0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_photo_of_100_megapixels(estimator, image, tmp_path, suffix):
    """The bounding box is in pixels of the file although fewer are decoded."""
    small = image.resize((2048, 2400))
    large = Image.new("RGB", (10000, 10000), (90, 120, 90))
    large.paste(small, (5000, 2000))
    path = tmp_path / f"large{suffix}"
    large.save(path, **({"compress_level": 1} if suffix == ".png" else {}))
    (face,) = estimator.predict(path)
    expected = [5000 + BOX[0] * 4, 2000 + BOX[1] * 4, 5000 + BOX[2] * 4, 2000 + BOX[3] * 4]
    assert face.box == pytest.approx(expected, abs=120)


def test_a_decompression_bomb_is_refused(estimator, tmp_path):
    with (tmp_path / "bomb.png").open("wb") as file:
        Image.new("1", (20000, 20000)).save(file, "PNG")
    with pytest.raises(DataError, match=r"bomb\.png: .*too many"):
        estimator.predict(tmp_path / "bomb.png")


@pytest.mark.parametrize("degrees", [-30, 0, 30])
def test_tilted_faces(estimator, image, expected, degrees):
    canvas = draw_background(700, 700, np.random.default_rng(0))
    paste_face(canvas, np.asarray(image)[60:400, 100:440], (350, 350), 340, degrees)
    (face,) = estimator.predict(canvas)
    assert face.age == pytest.approx(expected.age, abs=8)


def test_arrays_pillow_images_and_paths_agree(estimator, image, portrait, expected):
    (from_array,) = estimator.predict(np.asarray(image))
    (from_path,) = estimator.predict(str(portrait))
    assert from_array == expected
    assert from_path.box == expected.box
    assert from_path.age == expected.age


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 2)), np.zeros((0, 4, 3), np.uint8), 3])
def test_other_types_are_refused(estimator, bad):
    with pytest.raises(DataError, match="must be"):
        estimator.predict(bad)


def test_without_a_detector_the_image_is_the_crop(trained_run, faces_folder):
    paths = sorted(faces_folder.iterdir())[:5]
    estimator = Estimator.load(run=trained_run, detector="none")
    faces = [face for photo in estimator.predict_many(paths) for face in photo.faces]
    assert [face.file for face in faces] == [str(path) for path in paths]
    assert {(face.box, face.detector) for face in faces} == {(None, "none")}


def test_results_keep_the_order_with_unreadable_files_among_them(trained_run, faces_folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    bad = [tmp_path / name for name in ("bad.png", "lost.png", "empty.jpg", "folder.jpg")]
    paths = (sorted(faces_folder.iterdir()) + bad) * 3
    photos = list(Estimator.load(run=trained_run, detector="none").predict_many(paths))
    assert [photo.file for photo in photos] == [str(path) for path in paths]
    assert [photo.status for photo in photos] == (["ok"] * 60 + ["unreadable"] * 4) * 3
    assert [photo.reason for photo in photos[61:64]] == [
        "no such file",
        photos[62].reason,
        "not a regular file",
    ]
    assert photos[0].faces[0].age == pytest.approx(photos[64].faces[0].age, abs=0.3)


def test_images_are_kept_only_on_request(estimator, portrait):
    (plain,) = estimator.predict_many([portrait])
    (kept,) = estimator.predict_many([portrait], keep_images=True)
    assert plain.image is None and plain.crops == ()
    assert kept.image.shape == (600, 512, 3)
    assert [crop.shape for crop in kept.crops] == [(200, 200, 3)]
    assert kept.faces == plain.faces


def test_gender_below_the_threshold_is_uncertain(trained_run, portrait):
    (face,) = Estimator.load(run=trained_run, min_confidence=1.0).predict(portrait)
    assert face.gender == "uncertain"
    with pytest.raises(AgegenError, match=r"between 0\.5 and 1"):
        Estimator.load(run=trained_run, min_confidence=0.2)


@pytest.mark.usefixtures("real_yunet")
def test_yunet_finds_the_same_face(trained_run, portrait, expected):
    (face,) = Estimator.load(run=trained_run, detector="yunet").predict(portrait)
    assert face.detector == "yunet"
    assert face.box == pytest.approx(expected.box, abs=25)


def test_estimates_of_real_crops_change_little_when_they_are_aligned_again(trained_run, utkface):
    paths = sorted(utkface.glob("*.jpg"))[::900]
    direct = Estimator.load(run=trained_run, detector="none").predict_many(paths)
    detected = Estimator.load(run=trained_run).predict_many(paths)
    pairs = [(a.faces[0].age, b.faces[0].age) for a, b in zip(direct, detected, strict=True) if b.faces]
    assert len(pairs) > 0.9 * len(paths)
    first, second = np.array(pairs).T
    assert np.median(np.abs(first - second)) < 6


def test_damaged_files_never_raise(estimator, image, tmp_path):
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(20):
        content = bytearray(stream.getvalue())
        for place in rng.integers(0, len(content), 50):
            content[place] = rng.integers(256)
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(content[: rng.integers(10, len(content))])
    assert {photo.status for photo in estimator.predict_many(paths)} <= {"ok", "no_face", "unreadable"}


def test_score_size_landmarks_and_model_of_a_face(portrait, tmp_path):
    estimator = Estimator.load()
    (face,) = estimator.predict(portrait)
    assert 0.9 < face.score <= 1
    assert face.size == pytest.approx(84, abs=12)
    assert face.landmarks[0] == pytest.approx((220, 187), abs=12)
    name, _, digest = face.model.removesuffix(" int8").split()
    assert name == "compact"
    weights = find_weights("compact")
    assert hashlib.sha256(weights.read_bytes()).hexdigest().startswith(digest)
    assert len(digest) == 12
    # The ONNX file exported from these weights identifies the same model.
    alone = Estimator.load(run=weights.with_suffix(".onnx")).predict(portrait)[0]
    assert alone.model == face.model.removesuffix(" int8")
    # Sizes are in pixels of the file, also of a file that is decoded at a smaller size.
    Image.open(portrait).resize((256, 300)).save(tmp_path / "small.png")
    small = estimator.predict(tmp_path / "small.png")[0]
    assert small.size == pytest.approx(face.size / 2, abs=4)
    Image.open(portrait).resize((5120, 6000)).save(tmp_path / "large.jpg")
    large = estimator.predict(tmp_path / "large.jpg")[0]
    assert large.size == pytest.approx(face.size * 10, rel=0.1)
    assert large.landmarks[0] == pytest.approx((2200, 1870), abs=150)


def test_min_score(portrait):
    score = Estimator.load().predict(portrait)[0].score
    assert Estimator.load(min_score=score - 0.001).predict(portrait)
    assert Estimator.load(min_score=1.0).predict(portrait) == []
    with pytest.raises(AgegenError, match="--min-score must be between 0 and 1"):
        Estimator.load(min_score=2)


def test_all_forms_of_an_image_give_the_same_estimate(portrait):
    estimator = Estimator.load()
    (from_path,) = estimator.predict(str(portrait))
    for form in (portrait.read_bytes(), Image.open(portrait), np.asarray(Image.open(portrait))):
        (face,) = estimator.predict(form)
        assert (face.age, face.gender, face.box) == (from_path.age, from_path.gender, from_path.box)
    with pytest.raises(DataError, match=r"an image must be a path, .* not builtins\.dict"):
        estimator.predict({"bytes": portrait.read_bytes()})


def test_predict_many_takes_what_predict_takes(portrait):
    estimator = Estimator.load()
    (expected,) = estimator.predict(portrait)
    content, array = portrait.read_bytes(), np.asarray(Image.open(portrait))
    forms = [portrait, str(portrait), content, io.BytesIO(content), Image.open(portrait), array]
    named = [("a", content), ("b", array), ("c", lambda: content), ("d", Image.open(portrait))]
    photos = list(estimator.predict_many([*forms, *named]))
    assert [photo.file for photo in photos] == [*[str(portrait)] * 2, *["picture"] * 4, *"abcd"]
    assert [photo.faces[0].age for photo in photos] == [expected.age] * 10
    # What is wrong with an image is its own result; the others go on.
    wrong, right = estimator.predict_many([array / 127.5 - 1, array])
    assert (wrong.status, right.status) == ("unreadable", "ok")
    assert "negative numbers" in wrong.reason
    with pytest.raises(DataError, match=r"an image must be a path, .* not builtins\.list"):
        list(estimator.predict_many([[1, 2]]))


def test_estimators_can_be_copied_and_pickled(trained_run, portrait, tmp_path, monkeypatch):
    monkeypatch.chdir(trained_run.parent)
    options = {"min_score": 0.1, "under": [18], "distribution": True, "min_confidence": 0.9, "device": "cpu"}
    estimator = Estimator.load(run=trained_run.name, **options)
    content = pickle.dumps(estimator)
    assert len(content) < 2000
    # A relative path is that of the folder in which the estimator was loaded.
    monkeypatch.chdir(tmp_path)
    expected = estimator.predict(portrait)
    assert pickle.loads(content).predict(portrait) == expected
    assert pickle.loads(content) is pickle.loads(content)
    copied = copy.deepcopy(estimator)
    assert copied.predict(portrait) == expected
    assert copied.model.engine is not estimator.model.engine
    with pytest.raises(TypeError, match=r"Estimator\.load"):
        pickle.dumps(Estimator(estimator.model))


def test_a_pickled_estimator_keeps_its_weights(trained_run, tmp_path):
    path = shutil.copy(trained_run / "best.safetensors", tmp_path)
    content = pickle.dumps(Estimator.load(run=path, device="cpu"))
    weights, metadata = load_file(path), read_metadata(path)
    largest = max(weights, key=lambda name: weights[name].size)
    save_file({**weights, largest: weights[largest] + 1}, path, metadata)
    with pytest.raises(AgegenError, match="not those of the estimator"):
        pickle.loads(content)


def read_metadata(path):
    with safe_open(path, "np") as file:
        return file.metadata()


@pytest.mark.slow
def test_processes_receive_an_estimator(portrait):
    estimator = Estimator.load()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(estimator.predict, [str(portrait)] * 2))
    assert found == [estimator.predict(str(portrait))] * 2


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_distribution_agrees_with_the_age(trained_run, portrait, engine):
    estimator = Estimator.load(run=trained_run, engine=engine, device="cpu", distribution=True, under=(18, 60))
    (face,) = estimator.predict(portrait)
    ages = np.array(face.distribution)
    assert ages.shape == (117,)
    assert ages.sum() == pytest.approx(1, abs=1e-3)
    assert ages @ np.arange(117) == pytest.approx(face.age, abs=0.3)
    (young, first), (old, second) = face.under
    assert (young, old) == (18, 60)
    assert 0 <= first <= second <= 1
    assert face.to_json()["under_60"] == second
    with pytest.raises(AgegenError, match="--under requires ages from 1 to 116"):
        Estimator.load(run=trained_run, under=(0,))


def test_frames_are_not_read_ahead_of_their_estimates(estimator, portrait):
    head = np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]
    read = []

    def frames():
        for number in range(200):
            read.append(number)
            yield number / 2, head

    results = estimator.predict_frames("clip", frames())
    next(results)
    assert len(read) < 60
    results.close()


@pytest.fixture(scope="module")
def model(trained_run):
    return FaceModel(*load_torch(trained_run / "best.safetensors", "cpu", "fp32"))


def test_mirrored_faces_get_the_same_estimate(model):
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    first, second = model.estimate([image, np.ascontiguousarray(image[:, ::-1])])
    assert first.age == pytest.approx(second.age, abs=1e-4)
    assert first.p_female == pytest.approx(second.p_female, abs=1e-5)
    assert first.age_low <= first.age <= first.age_high
    assert model.estimate([]) == []


def test_a_trained_model_is_calibrated(model):
    assert model.calibration.faces > 0
    assert model.calibration != UNCALIBRATED
    assert 0.5 <= model.calibration.min_confidence <= 1


def collect(stream):
    return [item for item in stream if not isinstance(item, Waiting)]


def test_results_keep_the_order_however_long_they_take():
    def work(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    assert collect(stream_in_order(work, range(40), 4, 8)) == list(range(40))
    assert collect(stream_in_order(work, [], 2, 4)) == []


def test_the_reader_is_told_to_wait():
    gate = threading.Event()
    stream = stream_in_order(lambda _: gate.wait(5), [1], 1, 2)
    assert next(stream) is WAITING
    gate.set()
    assert collect(stream) == [True]


def test_an_infinite_source_is_not_read_ahead():
    drawn = []
    source = (drawn.append(number) or number for number in itertools.count())
    stream = stream_in_order(lambda number: number, source, 2, 4)
    assert next(item for item in itertools.islice(stream, 30) if item is not WAITING) == 0
    time.sleep(0.3)
    assert len(drawn) < 30 + 10
    stream.close()
    count = len(drawn)
    time.sleep(0.5)
    assert len(drawn) <= count + 1


def test_a_slow_source_delays_no_result():
    gate = threading.Event()

    def source():
        yield 1
        gate.wait(5)
        yield 2

    stream = stream_in_order(lambda number: number, source(), 1, 4)
    first = next(item for item in stream if item is not WAITING)
    assert first == 1
    assert not gate.is_set()
    gate.set()
    assert collect(stream) == [2]


@pytest.mark.parametrize("place", ["work", "source"])
def test_errors_are_raised_in_their_place(place):
    def source():
        yield from (1, 2)
        if place == "source":
            raise ValueError("broken")
        yield 3

    def work(number):
        if number == 3:
            raise ValueError("broken")
        return number

    results = []
    with pytest.raises(ValueError, match="broken"):
        for item in stream_in_order(work, source(), 2, 4):
            results += [] if item is WAITING else [item]
    assert results == [1, 2]


def test_groups_hold_what_is_ready():
    paths = [f"{number}.jpg" for number in range(10)]
    assert [len(group) for group in group_items(paths, 4)] == [4, 4, 2]
    assert [len(group) for group in group_items(iter(paths), 1)] == [1] * 10
    pictures = [("a", b"1"), ("b", lambda: b"2"), "c", np.zeros((2, 2))]
    assert [len(group) for group in group_items(pictures, 4)] == [1, 3]
    gate = threading.Event()

    def source():
        yield from paths
        gate.wait(5)
        yield "last"

    groups, drawn = group_items(source(), 4), []
    while len(drawn) < 10:
        group = next(groups)
        assert len(group) <= 4
        drawn += group
    assert not gate.is_set()
    gate.set()
    assert [*drawn, *next(groups)] == [*paths, "last"]
    assert next(groups, None) is None


def test_an_error_of_a_source_comes_after_its_items():
    def source():
        yield from ("a", "b")
        raise ValueError("broken")

    drawn = []
    with pytest.raises(ValueError, match="broken"):
        for group in group_items(source(), 4):
            drawn += group
    assert drawn == ["a", "b"]


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_crops_are_estimated_alike_from_lists_generators_and_one_by_one(trained_run, faces_folder, tmp_path, engine):
    paths = [str(path) for path in sorted(faces_folder.iterdir())[:37]]
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    paths.insert(20, str(tmp_path / "broken.jpg"))
    estimator = Estimator.load(run=trained_run, detector="none", engine=engine, device="cpu", precision="fp32")
    listed, generated = list(estimator.predict_many(paths)), list(estimator.predict_many(iter(paths)))
    assert [photo.file for photo in listed] == [photo.file for photo in generated] == paths
    assert listed[20].status == "unreadable"
    for photo, other in zip(listed, generated, strict=True):
        expected = [] if photo.status == "unreadable" else estimator.predict(photo.file)
        for faces in (photo.faces, other.faces):
            assert [face.age for face in faces] == pytest.approx([face.age for face in expected], abs=0.11)
