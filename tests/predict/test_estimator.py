"""Every kind of picture that people have, through the detector to an estimate."""

import hashlib
import io

import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen import Estimator
from agegen.errors import AgegenError, DataError
from agegen.model.weights import find_weights

UPRIGHT = (175, 115, 355, 335)


@pytest.fixture(scope="module")
def estimator(trained_run):
    return Estimator.load(run=trained_run, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def picture(portrait):
    return Image.open(portrait).convert("RGB")


@pytest.fixture(scope="module")
def expected(estimator, picture):
    (face,) = estimator.predict(picture)
    return face


def check(face, expected, tolerance=3.0):
    assert face.box == pytest.approx(expected.box, abs=12)
    assert face.age == pytest.approx(expected.age, abs=tolerance)
    assert face.status == "ok"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats(estimator, picture, expected, tmp_path, kind):
    path = tmp_path / f"face.{kind.lower()}"
    picture.save(path, kind)
    (face,) = estimator.predict(path)
    # GIF has 256 colours only.
    check(face, expected, 8.0 if kind == "GIF" else 3.0)
    assert (face.file, face.face, face.detector) == (str(path), 1, "mtcnn")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_modes(estimator, picture, expected, tmp_path, mode):
    if mode == "I;16":
        changed = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        changed = picture.convert(mode)
    path = tmp_path / ("face.tif" if mode in ("CMYK", "YCbCr") else "face.png")
    changed.save(path)
    (face,) = estimator.predict(path)
    assert face.box == pytest.approx(expected.box, abs=12)


def test_many_threads_give_what_one_gives(estimator, picture, tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.jpg" for number in range(8)]
    for number, path in enumerate(paths):
        picture.rotate(4 * number - 14, fillcolor=(90, 90, 90)).save(path)
    found = []
    for cores in (1, 4):
        monkeypatch.setattr("agegen.machine.count_cores", lambda cores=cores: cores)
        found.append([face for photo in estimator.predict_many(paths) for face in photo.faces])
    one, many = found
    assert {face.file for face in one} == set(map(str, paths))
    assert [(face.file, face.box) for face in one] == [(face.file, face.box) for face in many]
    # The batches differ, and with them the last digits.
    assert [face.age for face in one] == pytest.approx([face.age for face in many], abs=1e-3)


def test_cmyk_jpeg(estimator, picture, expected, tmp_path):
    picture.convert("CMYK").save(tmp_path / "face.jpg", quality=95)
    (face,) = estimator.predict(tmp_path / "face.jpg")
    check(face, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(estimator, picture, expected, tmp_path, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a camera's rotation amounts to
    stored = picture if orientation == 1 else picture.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "face.jpg", exif=exif, quality=95)
    (face,) = estimator.predict(tmp_path / "face.jpg")
    check(face, expected)


def test_damaged_metadata_is_no_reason_to_refuse(estimator, picture, expected, tmp_path):
    picture.save(tmp_path / "face.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage", quality=95)
    (face,) = estimator.predict(tmp_path / "face.jpg")
    check(face, expected)


def test_the_first_frame_of_an_animation_counts(estimator, picture, expected, tmp_path):
    black = Image.new("RGB", picture.size)
    picture.save(tmp_path / "face.gif", save_all=True, append_images=[black, black])
    (face,) = estimator.predict(tmp_path / "face.gif")
    check(face, expected, 8.0)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_photograph_of_100_megapixels(estimator, picture, tmp_path, suffix):
    """The box comes back in the file's own pixels, though less of them are decoded."""
    small = picture.resize((2048, 2400))
    large = Image.new("RGB", (10000, 10000), (90, 120, 90))
    large.paste(small, (5000, 2000))
    path = tmp_path / f"large{suffix}"
    large.save(path, **({"compress_level": 1} if suffix == ".png" else {}))
    (face,) = estimator.predict(path)
    wanted = [5000 + UPRIGHT[0] * 4, 2000 + UPRIGHT[1] * 4, 5000 + UPRIGHT[2] * 4, 2000 + UPRIGHT[3] * 4]
    assert face.box == pytest.approx(wanted, abs=120)


def test_a_decompression_bomb_is_refused(estimator, tmp_path):
    with (tmp_path / "bomb.png").open("wb") as file:
        Image.new("1", (20000, 20000)).save(file, "PNG")
    with pytest.raises(DataError, match=r"bomb\.png: .*too many"):
        estimator.predict(tmp_path / "bomb.png")


@pytest.mark.parametrize("turn", [-30, 0, 30])
def test_turned_faces(estimator, picture, expected, turn):
    canvas = draw_background(700, 700, np.random.default_rng(0))
    paste_face(canvas, np.asarray(picture)[60:400, 100:440], (350, 350), 340, turn)
    (face,) = estimator.predict(canvas)
    assert face.age == pytest.approx(expected.age, abs=8)


def test_arrays_pillow_images_and_paths_agree(estimator, picture, portrait, expected):
    (from_array,) = estimator.predict(np.asarray(picture))
    (from_path,) = estimator.predict(str(portrait))
    assert from_array == expected
    assert from_path.box == expected.box
    assert from_path.age == expected.age


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 2)), np.zeros((0, 4, 3), np.uint8), 3])
def test_other_arrays_are_refused(estimator, bad):
    with pytest.raises(DataError, match="must be"):
        estimator.predict(bad)


def test_without_detection_the_picture_is_the_face(trained_run, faces_folder):
    paths = sorted(faces_folder.iterdir())[:5]
    estimator = Estimator.load(run=trained_run, detector="none")
    faces = [face for photo in estimator.predict_many(paths) for face in photo.faces]
    assert [face.file for face in faces] == [str(path) for path in paths]
    assert {(face.box, face.detector) for face in faces} == {(None, "none")}


def test_order_and_bad_files_in_large_batches(trained_run, faces_folder, tmp_path):
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


def test_images_are_kept_on_request_alone(estimator, portrait):
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
def test_yunet_sees_the_same_face(trained_run, portrait, expected):
    (face,) = Estimator.load(run=trained_run, detector="yunet").predict(portrait)
    assert face.detector == "yunet"
    assert face.box == pytest.approx(expected.box, abs=25)


def test_crops_of_the_real_set_give_what_they_give_aligned(trained_run, utkface):
    """Detection and alignment of a crop that is aligned already change its estimate little."""
    paths = sorted(utkface.glob("*.jpg"))[::900]
    plain = Estimator.load(run=trained_run, detector="none").predict_many(paths)
    found = Estimator.load(run=trained_run).predict_many(paths)
    pairs = [(a.faces[0].age, b.faces[0].age) for a, b in zip(plain, found, strict=True) if b.faces]
    assert len(pairs) > 0.9 * len(paths)
    first, second = np.array(pairs).T
    assert np.median(np.abs(first - second)) < 6


def test_encoded_noise_is_never_a_traceback(estimator, picture, tmp_path):
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(20):
        content = bytearray(stream.getvalue())
        for place in rng.integers(0, len(content), 50):
            content[place] = rng.integers(256)
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(content[: rng.integers(10, len(content))])
    assert {photo.status for photo in estimator.predict_many(paths)} <= {"ok", "no_face", "unreadable"}


def test_a_row_tells_how_sure_and_how_large_and_by_whom(portrait, tmp_path):
    estimator = Estimator.load()
    (face,) = estimator.predict(portrait)
    assert 0.9 < face.score <= 1
    assert face.size == pytest.approx(84, abs=12)
    assert face.landmarks[0] == pytest.approx((220, 187), abs=12)
    name, _, digest = face.model.split()
    assert name == "compact"
    weights = find_weights("compact")
    assert hashlib.sha256(weights.read_bytes()).hexdigest().startswith(digest)
    assert len(digest) == 12
    # The ONNX file by itself, which is made from these weights, says the same.
    alone = Estimator.load(run=weights.with_suffix(".onnx")).predict(portrait)[0]
    assert alone.model == face.model
    # In a smaller copy all is smaller; what was decoded at less than the file's size is told in the file's pixels.
    Image.open(portrait).resize((256, 300)).save(tmp_path / "small.png")
    small = estimator.predict(tmp_path / "small.png")[0]
    assert small.size == pytest.approx(face.size / 2, abs=4)
    Image.open(portrait).resize((5120, 6000)).save(tmp_path / "large.jpg")
    large = estimator.predict(tmp_path / "large.jpg")[0]
    assert large.size == pytest.approx(face.size * 10, rel=0.1)
    assert large.landmarks[0] == pytest.approx((2200, 1870), abs=150)


def test_faces_that_the_detector_doubts_are_left_out(portrait):
    score = Estimator.load().predict(portrait)[0].score
    assert Estimator.load(min_score=score - 0.001).predict(portrait)
    assert Estimator.load(min_score=1.0).predict(portrait) == []
    with pytest.raises(AgegenError, match="--min-score must be between 0 and 1"):
        Estimator.load(min_score=2)
