"""Images in memory in all their forms are decoded like the file would be."""

import io

import numpy as np
import pytest
from PIL import Image

from agegen.data.images import decode_image, scale_to_8_bits
from agegen.errors import DataError
from agegen.predict.extraction import open_image


def read_image(image, limit):
    return open_image(image, limit)(None)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def test_arrays_bytes_and_files_give_the_same_image(image, tmp_path):
    content = encode(image)
    (tmp_path / "p.png").write_bytes(content)
    with (tmp_path / "p.png").open("rb") as file:
        forms = [image, content, bytearray(content), memoryview(content), io.BytesIO(content), file]
        assert all(np.array_equal(read_image(form, 100).image, image) for form in forms)
    opaque = np.dstack([image, np.full((40, 30), 255, np.uint8)])
    assert np.array_equal(read_image(opaque, 100).image, image)
    transparent = np.dstack([image, np.zeros((40, 30), np.uint8)])
    assert (read_image(transparent, 100).image == 255).all()
    assert np.array_equal(read_image(image[:, ::-1], 100).image, image[:, ::-1])
    assert np.array_equal(read_image(np.ma.array(image / 255), 100).image, image)


def test_encoded_images_are_limited_in_size():
    photo = read_image(encode(np.zeros((400, 300, 3), np.uint8)), 100)
    assert photo.image.shape[0] == 100
    assert photo.scale == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1)])
def test_greyscale_arrays(shape):
    grey = np.arange(1200).reshape(shape).astype(np.uint8)
    image = read_image(grey, 100).image
    assert image.shape == (40, 30, 3)
    assert (image == grey.reshape(40, 30, 1)).all()


def test_pillow_images_are_rotated_by_their_exif_orientation(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = Image.open(io.BytesIO(encode(image, "PNG", exif=exif)))
    assert np.array_equal(read_image(rotated, 100).image, np.rot90(image, -1))
    assert np.array_equal(read_image(rotated, 100).image, decode_image(encode(image, "PNG", exif=exif)))


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
def test_values_of_more_than_8_bits_are_mapped_to_8(values, dtype, white):
    array = np.array([values], dtype=dtype)
    expected = [round(value / white * 255) for value in values]
    assert scale_to_8_bits(array)[0].tolist() == pytest.approx(expected, abs=1)
    assert read_image(np.repeat(array, 3, axis=0), 9).image[0, :, 0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("overshoot", [0.0001, 0.04, 0.2])
def test_floats_that_exceed_their_range_keep_it(image, white, overshoot):
    """Resampling goes below black and above white beside hard edges."""
    array = image / 255 * white
    array[0, 0], array[0, 1] = -overshoot * white, (1 + overshoot) * white
    found = read_image(array, 100).image
    assert np.array_equal(found[1:], image[1:])
    assert (found[0, 0].tolist(), found[0, 1].tolist()) == ([0] * 3, [255] * 3)


@pytest.mark.parametrize(
    "normalize",
    [
        lambda image: image / 127.5 - 1,
        lambda image: image / 255 - 0.5,
        lambda image: (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225),
        lambda image: image - np.array((123.7, 116.3, 103.5)),
        lambda image: image.astype(np.int16) - 1,
        lambda image: image.astype(np.int8),
    ],
)
def test_normalized_arrays_are_refused(image, normalize):
    with pytest.raises(DataError, match=r"negative numbers.*Give RGB as uint8 0–255 or float 0–1"):
        read_image(normalize(image), 100)


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I;16", np.uint16), ("I", np.int32)])
def test_files_of_more_than_8_bits_are_not_black(mode, dtype, tmp_path):
    grey = np.linspace(0, 1 if mode == "F" else 4095, 1200).reshape(40, 30).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "deep.tif")
    image = decode_image((tmp_path / "deep.tif").read_bytes())
    assert image.min() == 0
    assert image.max() == 255
    assert np.abs(image[:, :, 0].astype(float) - np.linspace(0, 255, 1200).reshape(40, 30)).max() <= 1


def test_nan_and_infinity_are_black():
    array = np.array([[np.nan, np.inf, 0.5]], dtype=np.float32)
    assert scale_to_8_bits(array).tolist() == [[0, 0, 128]]
    assert scale_to_8_bits(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (7, "not builtins.int"),
        (None, "not builtins.NoneType"),
        ([[1, 2]], "not builtins.list"),
        (np.zeros((4, 4, 2), np.uint8), r"not uint8 \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4), complex), "not complex128"),
        (np.zeros((4, 4), "U1"), "not <U1"),
        (b"no image", "not a readable"),
    ],
    ids=str,
)
def test_errors_name_the_type_of_what_is_not_an_image(bad, message):
    with pytest.raises(DataError, match=message) as caught:
        read_image(bad, 100)
    assert len(str(caught.value).splitlines()) == 1
