"""Synthetic video clips: faces that move over a background."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from composing import draw_background, paste_face

# The position of a face at a time in seconds: x, y, side of its crop in pixels, clockwise rotation in degrees; None
# while it is not visible.
Motion = Callable[[float], tuple[float, float, float, float] | None]


def move(start, end, side, first=0.0, last=1e9, seconds=4.0) -> Motion:
    """Return the motion from one point (x, y) to another in ``seconds``, visible from ``first`` to ``last``."""

    def locate(time):
        if not first <= time <= last:
            return None
        share = time / seconds
        x, y = (begin + (finish - begin) * share for begin, finish in zip(start, end, strict=True))
        return x, y, side * (1 + 0.1 * np.sin(time)), 6 * np.sin(1.5 * time)

    return locate


def draw_frames(crops, motions, times, size, seed=0):
    """Yield a frame for each time: faces on a background, with a camera's noise and changes of light."""
    rng = np.random.default_rng(seed)
    background = draw_background(*size, rng)
    for time in times:
        frame = background.copy()
        for crop, motion in zip(crops, motions, strict=True):
            if (place := motion(time)) is not None:
                x, y, side, degrees = place
                paste_face(frame, crop, (x, y), side, degrees)
        lit = frame * (1 + 0.05 * np.sin(3 * time)) + rng.normal(0, 3, frame.shape)
        yield lit.clip(0, 255).astype(np.uint8)


def write_clip(path, crops, motions, seconds=4.0, fps=10, size=(640, 360), times=None, seed=0, aspect=None, kind=None):
    """Write a clip.

    ``times`` in seconds give it a variable frame rate, ``aspect`` is the width of a pixel divided by its height, and
    ``kind`` is FFmpeg's name of the format, where the extension does not say it.
    """
    times = [number / fps for number in range(round(seconds * fps))] if times is None else times
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "ultrafast", "g": "10"}
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for time, image in zip(times, draw_frames(crops, motions, times, size, seed), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def set_rotation(path, quarters):
    """Set the clockwise rotation by 90° × ``quarters`` in the track header of an MP4, as phones do."""
    content = bytearray(path.read_bytes())
    matrices = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}
    a, b, c, d = (value * 0x10000 for value in matrices[quarters])
    # In version 0 of a track header the matrix begins 40 bytes after the box's name and version.
    start = content.index(b"tkhd") + 4 + 40
    for offset, value in ((0, a), (4, b), (12, c), (16, d)):
        content[start + offset : start + offset + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(content))
    return path


def add_sound(source, path, seconds):
    """Write a copy of a clip with a tone of another length, as screen recorders do, and return its path."""
    with av.open(str(source)) as read, av.open(str(path), "w") as container:
        picture = container.add_stream_from_template(read.streams.video[0])
        sound = container.add_stream("aac", rate=48000)
        packets = [packet for packet in read.demux(read.streams.video[0]) if packet.dts is not None]
        for packet in packets:
            packet.stream = picture
        for number in range(round(seconds * 48000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, 1024 * number
            container.mux(sound.encode(frame))
            # Interleaved, as recorders write them.
            while packets and packets[0].dts * packets[0].time_base < number * 1024 / 48000:
                container.mux(packets.pop(0))
        container.mux([*packets, *sound.encode()])
    return Path(path)
