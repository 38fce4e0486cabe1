"""Videos and animations as streams of upright frames, read as far as they are intact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import RGB, decode_frames, is_animated, read_image_file
from agegen.errors import DataError

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
        *(".wmv", ".flv", ".3gp", ".ogv"),
    }
)
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".apng", ".png"})
# A video is truncated if its last frame comes before this share of its nominal duration.
_MIN_LENGTH = 0.9
# A broken container gives the same error again and again.
_MAX_DAMAGED_PACKETS = 1000
# Frame rate and time base of videos that do not specify them.
_DEFAULT_RATE, _DEFAULT_TIME_BASE = Fraction(25), Fraction(1, 90_000)
# Seconds per frame in animations that do not specify it; browsers use the same.
_DEFAULT_FRAME_SECONDS = 0.1


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to process: ``fps`` per second, or ``every`` frame."""

    fps: float = 2.0
    every: bool = False

    @property
    def step(self) -> float:
        """Minimum time between two sampled frames, in seconds."""
        return 0.0 if self.every else 1 / self.fps


@dataclass(frozen=True)
class VideoOptions:
    """How to process videos; ``frames``: output a row per face and frame instead of one per person."""

    sampling: Sampling = field(default_factory=Sampling)
    frames: bool = False


def is_video_name(name: str) -> bool:
    """Return whether a file name has the extension of a video."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def is_video(name: str, animations: bool) -> bool:
    """Return whether to process a file as a video: by its name, or, with ``animations``, if it is an animated image."""
    if is_video_name(name):
        return True
    return animations and Path(name).suffix.lower() in ANIMATION_SUFFIXES and _is_animation(name)


class Video:
    """A video to read frame by frame; after the last one ``reason`` says what was wrong with it, if anything."""

    def __init__(self, path: str) -> None:
        """Open the video.

        Raises:
            DataError: the file does not exist or is not a readable video, or PyAV is not installed.
        """
        if not Path(path).exists():
            raise DataError("no such file")
        self._av = _import_av()
        self.path = path
        self.reason: str | None = None
        with self._open() as container:
            stream = container.streams.video[0]
            self.rate = stream.average_rate or _DEFAULT_RATE
            self.time_base = stream.time_base or _DEFAULT_TIME_BASE
            self._length = float(container.duration / self._av.time_base) if container.duration else None

    def read(self, sampling: Sampling) -> Iterator[tuple[float, RGB]]:
        """Yield (time in seconds, upright frame) of the sampled frames; damaged parts are skipped."""
        next_time = 0.0
        for time, frame in self.decode():
            if time + 1e-6 >= next_time:
                # After a gap, continue from the next frame instead of catching up with the missed times.
                next_time = max(next_time + sampling.step, time + 0.5 * sampling.step)
                yield time, convert_frame(frame)

    def decode(self) -> Iterator[tuple[float, Any]]:
        """Yield (time in seconds from the first frame, PyAV frame) of all frames."""
        self.reason, last, damaged, start = None, -1.0, 0, None
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while damaged <= _MAX_DAMAGED_PACKETS:
                try:
                    frames = next(packets).decode()
                except (StopIteration, self._av.error.EOFError):
                    break
                except self._av.error.FFmpegError:
                    damaged += 1
                    continue
                for frame in frames:
                    start = (frame.time or 0.0) if start is None else start
                    last = max((frame.time or 0.0) - start, last)
                    yield last, frame
        self.reason = self._find_problem(last, damaged)

    def _find_problem(self, last: float, damaged: int) -> str | None:
        """Return what is wrong with a video whose last frame is at ``last`` seconds; -1 means that it has none."""
        if last < 0:
            return "the video has no frame that can be decoded"
        if self._length is not None and last + 2 / float(self.rate) < _MIN_LENGTH * self._length:
            return f"the video is truncated: {last:.1f} of {self._length:.1f} seconds could be read"
        if damaged:
            return f"the video is damaged in {damaged:,} places; its last readable frame is at {last:.1f} seconds"
        return None

    def _open(self) -> Any:
        try:
            # Damaged titles and comments are no reason to reject the video.
            container = self._av.open(self.path, metadata_errors="replace")
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"not a readable video ({getattr(error, 'strerror', None) or error})") from error
        if not container.streams.video:
            container.close()
            raise DataError("not a readable video (audio only)")
        return container


def convert_frame(frame: Any) -> RGB:
    """Return a PyAV frame as RGB, rotated upright as the file's display matrix specifies."""
    image: RGB = frame.to_ndarray(format="rgb24")
    # Degrees counter-clockwise, as in np.rot90.
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def read_animation(path: str) -> Iterator[tuple[float, RGB]]:
    """Yield (time in seconds, frame) of all frames of a GIF, an animated WebP or an animated PNG.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    time = 0.0
    try:
        for duration, frame in decode_frames(read_image_file(path)):
            yield time, frame
            time += (duration or 1000 * _DEFAULT_FRAME_SECONDS) / 1000
    except DataError as error:
        raise DataError(f"the animation is damaged after {time:.1f} seconds ({error})") from error


def _is_animation(path: str) -> bool:
    try:
        return is_animated(read_image_file(path))
    except DataError:  # reading it later reports what is wrong
        return False


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError('videos require another package: pip install "agegen[video]"') from error
    # Discard FFmpeg's messages about damaged packets. Any other level installs a callback that takes the GIL, even for
    # errors below that level: closing a video while its decoder threads report errors would deadlock.
    av.logging.set_level(None)
    return av
