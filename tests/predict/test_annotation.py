import numpy as np
import pytest

from agegen.predict.annotation import draw_annotation, format_label
from agegen.predict.results import FacePrediction, PhotoPrediction


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
def test_labels_stand_out_on_any_colour(size, color):
    box = tuple(round(share * side) for share, side in zip((0.3, 0.4, 0.5, 0.7), size * 2, strict=True))
    drawn, image = annotate(size, color, [box])
    assert drawn.shape == image.shape
    changed = (drawn != image).any(axis=2)
    assert 0.001 < changed.mean() < 0.35
    # Both the darkest and the lightest colour are there, whatever lies behind.
    assert drawn.min() == 0
    assert drawn.max() == 255
    assert (image == color).all()


EDGES = [(0, 0, 200, 200), (-20, -30, 80, 90), (150, 150, 260, 280), (90, 0, 110, 8), (5, 5, 5, 5)]


@pytest.mark.parametrize("box", EDGES)
def test_boxes_at_the_edges(box):
    drawn, image = annotate((200, 200), 60, [box])
    assert (drawn != image).any()


def test_labels_of_neighbours_do_not_cover_each_other():
    one, _ = annotate((800, 400), 60, [(200, 200, 260, 270)])
    two, _ = annotate((800, 400), 60, [(200, 200, 260, 270), (265, 200, 325, 270)])
    white = ((two == 255).all(axis=2)).sum() / ((one == 255).all(axis=2)).sum()
    assert white == pytest.approx(2, abs=0.25)


def test_boxes_follow_the_scale_of_the_decoded_picture():
    drawn, image = annotate((400, 400), 60, [(800, 800, 1200, 1200)], scale=0.25)
    changed = np.argwhere((drawn != image).any(axis=2))
    assert changed.max() < 320
    assert changed[:, 0].max() == pytest.approx(300, abs=4)
