"""Videos as streams of frames: sampled, upright, as far as they can be read; animations too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import RGB, convert_to_rgb
from agegen.errors import DataError

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".3gp",
        ".ogv",
    }
)
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".apng", ".png"})
# Of what a file says of its own length: with less, it was cut off.
_WHOLE = 0.9
# Seconds of a frame in animations that don't say, as browsers show them.
_USUAL_FRAME = 0.1


def is_video_name(name: str) -> bool:
    """Return whether the name ends as a video's does."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at: ``fps`` of each second, or ``every`` one."""

    fps: float = 2.0
    every: bool = False

    @property
    def step(self) -> float:
        """Seconds between two of them, at least."""
        return 0.0 if self.every else 1 / self.fps


class Video:
    """A video that is read frame by frame; what is wrong with it stands in ``reason`` after the last one."""

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            DataError: PyAV isn't installed, or it is no video that can be read.
        """
        self._av = _import_av()
        self.path = path
        self.reason: str | None = None
        with self._open() as container:
            stream = container.streams.video[0]
            self.rate = stream.average_rate or Fraction(25)
            self.time_base = stream.time_base or Fraction(1, 90_000)
            self._length = float(container.duration / self._av.time_base) if container.duration else None

    def read(self, sampling: Sampling) -> Iterator[tuple[float, RGB]]:
        """Yield (time in seconds, picture) of the sampled frames, upright; damaged places are passed over."""
        wanted = 0.0
        for time, frame in self.decode():
            if time + 1e-6 >= wanted:
                # Of long gaps the next frame counts, not all that were missed.
                wanted = max(wanted + sampling.step, time + 0.5 * sampling.step)
                yield time, turn_frame(frame)

    def decode(self) -> Iterator[tuple[float, Any]]:
        """Yield (time in seconds, PyAV's frame) of all frames; times begin at 0."""
        self.reason, last, damaged, start = None, -1.0, 0, None
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while True:
                try:
                    frames = next(packets).decode()
                except (StopIteration, self._av.error.EOFError):
                    break
                except self._av.error.FFmpegError:
                    damaged += 1
                    # A broken container gives the same error for ever.
                    if damaged > 1000:
                        break
                    continue
                for frame in frames:
                    start = (frame.time or 0.0) if start is None else start
                    last = max((frame.time or 0.0) - start, last)
                    yield last, frame
        self.reason = self._judge(last, damaged)

    def _judge(self, last: float, damaged: int) -> str | None:
        """Return what was wrong with a video whose last frame was at ``last`` seconds, -1 for none."""
        if last < 0:
            return "a video without a frame that can be decoded"
        if self._length is not None and last + 2 / float(self.rate) < _WHOLE * self._length:
            return f"the video breaks off: {last:.1f} of {self._length:.1f} seconds could be read"
        if damaged:
            return f"the video is damaged in {damaged:,} places; what could be read ends at {last:.1f} seconds"
        return None

    def _open(self) -> Any:
        try:
            container = self._av.open(self.path)
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"not a readable video ({getattr(error, 'strerror', None) or error})") from error
        if not container.streams.video:
            container.close()
            raise DataError("not a readable video (it has no picture, sound alone)")
        return container


def turn_frame(frame: Any) -> RGB:
    """Return PyAV's frame as RGB, upright as the file's display matrix says."""
    image: RGB = frame.to_ndarray(format="rgb24")
    # Degrees counter-clockwise, as NumPy turns.
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def count_frames(path: str) -> int:
    """Return how many frames an animation has: 1 for what is none, or can't be read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception:  # whoever decodes it says what is wrong
        return 1


def read_animation(path: str) -> Iterator[tuple[float, RGB]]:
    """Yield (time in seconds, picture) of all frames of a GIF, an animated WebP or PNG.

    Raises:
        DataError: it can't be read on.
    """
    from PIL import Image, ImageSequence

    time = 0.0
    try:
        with Image.open(path) as picture:
            for frame in ImageSequence.Iterator(picture):
                yield time, np.asarray(convert_to_rgb(frame))
                time += (frame.info.get("duration") or 1000 * _USUAL_FRAME) / 1000
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise DataError(f"the animation can be read to {time:.1f} seconds ({error})") from error


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError('a video needs another package: pip install "agegen[video]"') from error
    # Its messages of each damaged place would fill the terminal.
    av.logging.set_level(av.logging.PANIC)
    return av
