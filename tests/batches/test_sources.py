"""The weights with which training draws faces."""

import numpy as np
import pytest

from agegen.batches.sources import weigh_faces
from agegen.data.loading import load_sources
from agegen.data.scan import scan_images


def test_faces_of_a_source_are_drawn_by_its_weight(faces_folder, mini_fairface):
    scan = scan_images(load_sources((str(faces_folder), f"{mini_fairface}::0.25")))
    weights = weigh_faces(scan, np.arange(100), 0.0)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] == pytest.approx(4 * weights[60])
