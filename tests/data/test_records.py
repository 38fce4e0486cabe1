"""Records and the crop boxes of their images."""

from dataclasses import replace

import numpy as np

from agegen.data.loading import load_sources
from agegen.data.records import CropBox
from agegen.data.scan import scan_images


def test_crop_boxes_may_extend_beyond_the_image():
    image = np.arange(100 * 100 * 3, dtype=np.uint32).reshape(100, 100, 3).astype(np.uint8)
    assert (CropBox(0.1, 0.2, 0.5).cut(image) == image[20:70, 10:60]).all()
    wider = CropBox(-0.1, -0.1, 1.2).cut(image)
    assert wider.shape == (120, 120, 3)
    assert (wider[10:110, 10:110] == image).all()
    assert (wider[0, 0] == image[0, 0]).all()


def test_crop_boxes_apply_to_the_pixels_of_their_source(faces_folder, mini_fairface):
    records = load_sources((str(faces_folder), str(mini_fairface)))
    trimmed = replace(records, trims={"fairface": CropBox(0.25, 0.25, 0.5)})
    plain, cropped = scan_images(records, 32).pixels, scan_images(trimmed, 32).pixels
    assert (plain[:60] == cropped[:60]).all()
    assert all((plain[row] != cropped[row]).any() for row in range(60, 100))
    assert (records.describe_crop(), trimmed.describe_crop()) == (
        "",
        "fairface: CropBox(left=0.25, top=0.25, side=0.5)",
    )
