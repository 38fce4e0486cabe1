import numpy as np
import pytest

from agegen.predict.annotation import ImageWriter, draw_annotation, find_common_folder, format_label, make_copy_path
from agegen.predict.results import FacePrediction, KeepOptions, PhotoPrediction


def make_face(box, number=1):
    return FacePrediction("a.jpg", "ok", number, box, 34.2, 27.0, 41.4, "female", 0.984, "mtcnn")


def annotate(size, color, boxes, scale=1.0):
    image = np.full((size[1], size[0], 3), color, np.uint8)
    faces = tuple(make_face(box, number + 1) for number, box in enumerate(boxes))
    photo = PhotoPrediction("a.jpg", "ok", faces, image=image, scale=scale)
    return draw_annotation(photo), image


def test_label():
    assert format_label(make_face((0, 0, 1, 1))) == "34 (27-41)\nfemale 0.98"


@pytest.mark.parametrize("color", [0, 128, 255])
@pytest.mark.parametrize("size", [(200, 200), (640, 480), (4000, 3000)])
def test_labels_are_visible_on_any_colour(size, color):
    box = tuple(round(share * side) for share, side in zip((0.3, 0.4, 0.5, 0.7), size * 2, strict=True))
    annotated, image = annotate(size, color, [box])
    assert annotated.shape == image.shape
    changed = (annotated != image).any(axis=2)
    assert 0.001 < changed.mean() < 0.35
    # Black and white are both used, whatever the background.
    assert annotated.min() == 0
    assert annotated.max() == 255
    assert (image == color).all()


EDGES = [(0, 0, 200, 200), (-20, -30, 80, 90), (150, 150, 260, 280), (90, 0, 110, 8), (5, 5, 5, 5)]


@pytest.mark.parametrize("box", EDGES)
def test_boxes_at_the_edges_are_drawn(box):
    annotated, image = annotate((200, 200), 60, [box])
    assert (annotated != image).any()


def test_labels_of_neighbours_do_not_overlap():
    one, _ = annotate((800, 400), 60, [(200, 200, 260, 270)])
    two, _ = annotate((800, 400), 60, [(200, 200, 260, 270), (265, 200, 325, 270)])
    white = ((two == 255).all(axis=2)).sum() / ((one == 255).all(axis=2)).sum()
    assert white == pytest.approx(2, abs=0.25)


def test_boxes_are_scaled_like_the_decoded_image():
    annotated, image = annotate((400, 400), 60, [(800, 800, 1200, 1200)], scale=0.25)
    changed = np.argwhere((annotated != image).any(axis=2))
    assert changed.max() < 320
    assert changed[:, 0].max() == pytest.approx(300, abs=4)


def test_copies_have_the_relative_paths_of_the_inputs(tmp_path):
    (tmp_path / "a").mkdir()
    base = find_common_folder([str(tmp_path / "a"), str(tmp_path / "b.jpg")])
    assert base == tmp_path
    out = tmp_path / "out"
    assert make_copy_path(str(tmp_path / "a" / "x.jpg"), out, base, "") == out / "a" / "x.jpg"
    assert make_copy_path(str(tmp_path / "a" / ".." / ".." / "x.jpg"), out, base, "-1.png").is_relative_to(out)
    assert make_copy_path("/elsewhere/x.jpg", out, base, "") == out / "elsewhere" / "x.jpg"


def test_results_keep_what_the_writer_needs(tmp_path):
    assert not ImageWriter.create(None, None, ["a.jpg"]).writes
    writer = ImageWriter.create(tmp_path, tmp_path, ["photos/a.jpg"])
    assert writer.writes
    assert writer.keep == KeepOptions(images=False, crops=True, tracks=True)
    # The image on stdin cannot be decoded again.
    assert ImageWriter.create(tmp_path, None, ["-"]).keep.images
