from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from composing import draw_background, paste_face

from agegen.data.demo import draw_records
from agegen.data.images import decode_image
from agegen.predict.annotation import (
    ImageWriter,
    _connect,
    arrange_labels,
    draw_annotation,
    find_common_folder,
    format_label,
    make_copy_path,
)
from agegen.predict.results import FacePrediction, KeepOptions, PhotoPrediction


def make_face(box, number=1):
    return FacePrediction("a.jpg", "ok", number, box, 34.2, 27.0, 41.4, "female", 0.984, "mtcnn")


def annotate(size, color, boxes, scale=1.0):
    image = np.full((size[1], size[0], 3), color, np.uint8)
    faces = tuple(make_face(box, number + 1) for number, box in enumerate(boxes))
    photo = PhotoPrediction("a.jpg", "ok", faces, image=image, scale=scale)
    return draw_annotation(photo), image


def test_label():
    face = make_face((0, 0, 1, 1), number=7)
    assert format_label(face) == "34 (27-41)\nfemale 0.98"
    # In a group it starts with the number of the face in its row; a person of a video keeps its own number.
    assert format_label(face, several=True) == "7: 34 (27-41)\nfemale 0.98"
    assert format_label(replace(face, person=3), several=True) == "#3 34 (27-41)\nfemale 0.98"


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


def make_group(count, size, rows, seed):
    """Return a photo with faces in rows, as photographers arrange them, and their boxes."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = draw_background(width, height, rng)
    columns = -(-count // rows)
    side = min(width / (1.25 * columns), height / (1.5 * rows))
    boxes = []
    for index in range(count):
        own = side * rng.uniform(0.75, 1.0)
        center = (
            width / columns * (index % columns + 0.5 + rng.uniform(-0.04, 0.04)),
            height / rows * (index // columns + 0.55 + rng.uniform(-0.05, 0.05)),
        )
        face = decode_image(draw_records(20).read(index))
        paste_face(image, face, center, own)
        half = np.array([0.36, 0.42]) * own
        boxes.append((*(center - half), *(center + half)))
    return image, boxes


def place(boxes, size):
    texts = [format_label(make_face(box, number + 1), several=True) for number, box in enumerate(boxes)]
    return arrange_labels(texts, boxes, size)


def find_overlaps(labels, boxes):
    """Return the pairs of labels that overlap, and of labels and boxes of other faces."""
    rectangles = [(f"label {index}", label.place) for index, label in enumerate(labels)]
    faces = [(f"face {index}", box) for index, box in enumerate(boxes)]
    pairs = [*combinations(rectangles, 2), *product(rectangles, faces)]
    return [
        (first, second)
        for (first, one), (second, two) in pairs
        if first.split()[1] != second.split()[1]
        and (one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3])
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("count", "size", "rows"),
    [(5, (900, 600), 1), (9, (1200, 800), 2), (14, (1600, 1000), 3), (20, (640, 480), 4), (12, (800, 300), 1)],
)
def test_labels_of_groups_cover_no_label_and_no_other_face(count, size, rows, seed):
    image, boxes = make_group(count, size, rows, seed)
    labels = place(boxes, size)
    assert find_overlaps(labels, boxes) == []
    for label in labels:
        assert min(label.place) >= 0
        assert label.place[2] <= size[0]
        assert label.place[3] <= size[1]
        # Readable, but not larger than the faces need.
        assert 10 <= label.font_size <= max(size) / 25
    faces = tuple(make_face(box, number + 1) for number, box in enumerate(boxes))
    drawn = draw_annotation(PhotoPrediction("a.jpg", "ok", faces, image=image))
    for label in labels:
        left, top, right, bottom = (round(value) for value in label.place)
        # Black behind white letters, and no line of a box through it.
        inner = drawn[top + 2 : bottom - 2, left + 2 : right - 2].mean(axis=2)
        assert (inner < 40).mean() > 0.5


def test_a_label_without_room_next_to_its_face_is_moved_and_connected():
    # Nine faces side by side without gaps: the middle one is surrounded.
    boxes = [
        (200 + 60 * column, 200 + 60 * row, 260 + 60 * column, 260 + 60 * row)
        for row in range(3)
        for column in range(3)
    ]
    labels = place(boxes, (800, 600))
    assert find_overlaps(labels, boxes) == []
    assert labels[4].moved
    image = np.full((600, 800, 3), 128, np.uint8)
    faces = tuple(make_face(box, number + 1) for number, box in enumerate(boxes))
    drawn = draw_annotation(PhotoPrediction("a.jpg", "ok", faces, image=image))
    x, y, box_x, box_y = _connect(labels[4].place, boxes[4])
    middle = drawn[round((y + box_y) / 2), round((x + box_x) / 2)]
    assert middle.tolist() in ([0, 0, 0], [255, 255, 255])


def test_a_face_that_fills_its_photo_has_its_label_inside():
    (label,) = place([(0, 0, 600, 600)], (600, 600))
    assert not label.moved
    assert label.place[3] <= 600
    assert label.place[1] > 400


@pytest.mark.parametrize(
    ("place", "box", "line"),
    [
        ((0, 0, 10, 10), (30, 4, 40, 20), (10, 7, 30, 7)),
        ((50, 50, 60, 60), (0, 0, 20, 20), (50, 50, 20, 20)),
        ((0, 30, 10, 40), (4, 0, 20, 10), (7, 30, 7, 10)),
    ],
)
def test_leaders_join_the_closest_points(place, box, line):
    assert _connect(place, box) == line


def test_boxes_are_scaled_like_the_decoded_image():
    annotated, image = annotate((400, 400), 60, [(800, 800, 1200, 1200)], scale=0.25)
    changed = np.argwhere((annotated != image).any(axis=2))
    # The box is drawn from 200 to 300; the label is below it.
    assert changed.min(axis=0).tolist() == [200, 200]
    assert changed[:, 1].max() == pytest.approx(300, abs=4)
    assert changed[:, 0].max() < 345


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
