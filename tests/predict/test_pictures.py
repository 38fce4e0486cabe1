"""Pictures in memory: all that a program may have, read as the file would be."""

import io

import numpy as np
import pytest
from PIL import Image

from agegen.data.images import decode_image, scale_to_8_bits
from agegen.errors import DataError
from agegen.predict.estimator import Estimator, open_image


def read_picture(picture, limit):
    return open_image(picture, limit)(None)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)


def encode(picture, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def test_arrays_bytes_and_files_are_the_same_picture(picture, tmp_path):
    content = encode(picture)
    (tmp_path / "p.png").write_bytes(content)
    with (tmp_path / "p.png").open("rb") as file:
        forms = [picture, content, bytearray(content), memoryview(content), io.BytesIO(content), file]
        assert all(np.array_equal(read_picture(form, 100).image, picture) for form in forms)
    opaque = np.dstack([picture, np.full((40, 30), 255, np.uint8)])
    assert np.array_equal(read_picture(opaque, 100).image, picture)
    clear = np.dstack([picture, np.zeros((40, 30), np.uint8)])
    assert (read_picture(clear, 100).image == 255).all()
    assert np.array_equal(read_picture(picture[:, ::-1], 100).image, picture[:, ::-1])


def test_encoded_pictures_are_bounded():
    photo = read_picture(encode(np.zeros((400, 300, 3), np.uint8)), 100)
    assert photo.image.shape[0] == 100
    assert photo.scale == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1)])
def test_grey_arrays_are_taken(shape):
    grey = np.arange(1200).reshape(shape).astype(np.uint8)
    image = read_picture(grey, 100).image
    assert image.shape == (40, 30, 3)
    assert (image == grey.reshape(40, 30, 1)).all()


def test_pillow_images_obey_their_orientation(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encode(picture, "PNG", exif=exif)))
    assert np.array_equal(read_picture(turned, 100).image, np.rot90(picture, -1))
    assert np.array_equal(read_picture(turned, 100).image, decode_image(encode(picture, "PNG", exif=exif)))


@pytest.mark.parametrize(
    ("values", "dtype", "white"),
    [
        ((0, 0.5, 1), np.float32, 1),
        ((0, 128, 255), np.float64, 255),
        ((0, 3000, 6000), np.float32, 6000),
        ((0, 2048, 4095), np.uint16, 4095),
        ((0, 500, 1023), np.uint16, 1023),
        ((0, 30000, 65535), np.uint16, 65535),
        ((0, 50000, 100000), np.int32, 100000),
        ((0, 100, 200), np.int64, 255),
    ],
)
def test_deep_greys_are_stretched(values, dtype, white):
    array = np.array([values], dtype=dtype)
    expected = [round(value / white * 255) for value in values]
    assert scale_to_8_bits(array)[0].tolist() == pytest.approx(expected, abs=1)
    assert read_picture(np.repeat(array, 3, axis=0), 9).image[0, :, 0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I;16", np.uint16), ("I", np.int32)])
def test_deep_files_are_no_longer_black(mode, dtype, tmp_path):
    grey = np.linspace(0, 1 if mode == "F" else 4095, 1200).reshape(40, 30).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "deep.tif")
    image = decode_image((tmp_path / "deep.tif").read_bytes())
    assert image.min() == 0
    assert image.max() == 255
    assert np.abs(image[:, :, 0].astype(float) - np.linspace(0, 255, 1200).reshape(40, 30)).max() <= 1


def test_what_is_not_finite_is_black():
    array = np.array([[np.nan, np.inf, 0.5]], dtype=np.float32)
    assert scale_to_8_bits(array).tolist() == [[0, 0, 128]]
    assert scale_to_8_bits(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (7, "not builtins.int"),
        (None, "not builtins.NoneType"),
        ([[1, 2]], "not builtins.list"),
        (np.zeros((4, 4, 2), np.uint8), r"not uint8 \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4), complex), "not complex128"),
        (np.zeros((4, 4), "U1"), "not <U1"),
        (b"no picture", "not a readable image"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_named(picture, message):
    with pytest.raises(DataError, match=message) as caught:
        read_picture(picture, 100)
    assert len(str(caught.value).splitlines()) == 1


def test_the_estimator_takes_them_all(portrait):
    estimator = Estimator.load()
    (by_path,) = estimator.predict(str(portrait))
    for form in (portrait.read_bytes(), Image.open(portrait), np.asarray(Image.open(portrait))):
        (face,) = estimator.predict(form)
        assert (face.age, face.gender, face.box) == (by_path.age, by_path.gender, by_path.box)
    (photo,) = estimator.predict_many([str(portrait)])
    assert photo.faces[0].age == by_path.age
    with pytest.raises(DataError, match=r"predict_many takes paths, or names with bytes, not numpy\.ndarray"):
        list(estimator.predict_many([np.zeros((4, 4, 3), np.uint8)]))
