"""Clips composed of faces that move over a background, for tests of videos."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from composing import draw_background, paste_face

# Where a face is at a time in seconds: x, y, the side of its crop in pixels, its turn in degrees; None for nowhere.
Way = Callable[[float], tuple[float, float, float, float] | None]


def go(start, end, side, first=0.0, last=1e9, seconds=4.0):
    """Return a way from one place (x, y) to another in ``seconds``, seen from ``first`` to ``last``."""

    def way(time):
        if not first <= time <= last:
            return None
        share = time / seconds
        x, y = (begin + (finish - begin) * share for begin, finish in zip(start, end, strict=True))
        return x, y, side * (1 + 0.1 * np.sin(time)), 6 * np.sin(1.5 * time)

    return way


def draw_frames(crops, ways, times, size, seed=0):
    """Yield a frame for each time: faces on a background, with the noise and the light of a camera."""
    rng = np.random.default_rng(seed)
    background = draw_background(*size, rng)
    for time in times:
        frame = background.copy()
        for crop, way in zip(crops, ways, strict=True):
            if (place := way(time)) is not None:
                x, y, side, turn = place
                paste_face(frame, crop, (x, y), side, turn)
        lit = frame * (1 + 0.05 * np.sin(3 * time)) + rng.normal(0, 3, frame.shape)
        yield lit.clip(0, 255).astype(np.uint8)


def write_clip(path, crops, ways, seconds=4.0, fps=10, size=(640, 360), times=None, seed=0):
    """Write a clip; ``times`` in seconds, where they aren't even, makes its frame rate vary."""
    times = [number / fps for number in range(round(seconds * fps))] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "ultrafast", "g": "10"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(times, draw_frames(crops, ways, times, size, seed), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def turn_clip(path, quarters):
    """Say in an MP4's track header that players must turn it clockwise by quarters, as phones do."""
    content = bytearray(path.read_bytes())
    matrices = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}
    a, b, c, d = (value * 0x10000 for value in matrices[quarters])
    # Of a track header of version 0 the matrix begins 40 bytes behind the name of the box and its version.
    start = content.index(b"tkhd") + 4 + 40
    for offset, value in ((0, a), (4, b), (12, c), (16, d)):
        content[start + offset : start + offset + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(content))
    return path
