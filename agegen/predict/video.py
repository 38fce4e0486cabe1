"""Videos and animations as streams of upright frames, read as far as they are intact."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import RGB, decode_frames, is_animated, looks_like_image, read_image_file
from agegen.errors import DataError

_MOTION_JPEG = (".mjpg", ".mjpeg")
# Files in folders count as videos by these extensions; of files that are named, the content decides.
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob"),
        *(".ts", ".mts", ".m2ts", ".tod", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf"),
        *(".dv", ".lrv", ".insv", ".rm", ".rmvb", ".h264", ".264", ".h265", ".265", ".hevc", *_MOTION_JPEG),
    }
)
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".apng", ".png"})
# The number of bytes that distinguish an image file from other files.
HEADER_BYTES = 16
# FFmpeg's names of the formats to read. It knows others that open further files or addresses (playlists), or that take
# text and images for videos.
_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,asf,flv,live_flv,ogg,mxf,mxf_opatom,dv,rm,nut,wtv,gxf,ivf,dhav,nuv,pva,ty,swf,"
    "yuv4mpegpipe,m4v,mpegvideo,h261,h263,h264,hevc,vvc,av1,obu,vc1,vc1test,dirac,cavsvideo,avs2,avs3"
)
# A video is truncated if its last frame comes before this share of its nominal duration.
_MIN_LENGTH = 0.9
# Frames with more pixels are refused: the largest of cameras, 11K for all directions, have 56 million. Of formats that
# compress well, a file of 5 MB may contain frames of 2 GB.
_MAX_FRAME_PIXELS = 70_000_000
_CODEC_OPTIONS = {"max_pixels": str(_MAX_FRAME_PIXELS)}
# Each thread decodes another frame. More of them decode little faster, but need memory for large frames.
_MAX_THREADS = 4
# A broken container gives the same error again and again.
_MAX_DAMAGED_PACKETS = 1000
# Frame rate of videos that do not specify it.
_DEFAULT_RATE = Fraction(25)
# A time that goes back by more than this (in seconds, and in frames) is the start of another recording, which was
# appended to the file, as is a time that does not advance for more than this many frames. Smaller steps back come from
# frames whose times were stored in decoding order.
_RESTART_SECONDS, _RESTART_FRAMES = 0.25, 4
# Sample aspect ratios of real formats are within these limits (anamorphic lenses have 2); others are damage. Below the
# third number, which 16:15 of PAL exceeds, resampling would cost more than it corrects.
_MIN_ASPECT, _MAX_ASPECT, _MIN_STRETCH = 0.25, 4.0, 0.02
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
    """Return whether to process a file as a video, or, with ``animations``, as an animated image.

    If the file exists, its content decides: people and programs rename videos to ``.jpg`` or ``.dat``.
    """
    if is_image(name):
        return animations and Path(name).suffix.lower() in ANIMATION_SUFFIXES and _is_animation(name)
    return is_video_name(name) or _can_be_opened(name)


def is_image(name: str) -> bool:
    """Return whether a file is an image by its content; Motion JPEG, a series of JPEGs, is a video by its name."""
    return begins_as_image(name) and not name.lower().endswith(_MOTION_JPEG)


def begins_as_image(path: str) -> bool:
    """Return whether a file has the signature of a supported image format."""
    try:
        # Opening a named pipe would wait for its writer. These functions are faster than Path for a million files.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return False
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return looks_like_image(file.read(HEADER_BYTES))
    except (OSError, ValueError):
        return False


def _can_be_opened(path: str) -> bool:
    """Return whether FFmpeg finds a picture that moves in a file."""
    if not Path(path).is_file():
        return False
    try:
        Video(path)
    except DataError:
        return False
    return True


class Video:
    """A video to read frame by frame; after the last one ``reason`` says what was wrong with it, if anything."""

    def __init__(self, path: str) -> None:
        """Open the video.

        Raises:
            DataError: the file does not exist or is not a readable video, or PyAV is not installed.
        """
        if not Path(path).is_file():
            # Opening a named pipe would wait for its writer.
            raise DataError("not a regular file" if Path(path).exists() else "no such file")
        self._av = _import_av()
        self.path = path
        self.reason: str | None = None
        with self._open() as container:
            stream = _choose_stream(container)
            # The average of raw streams, which have no times, is only FFmpeg's default.
            self.rate = stream.guessed_rate or stream.average_rate or _DEFAULT_RATE
            self._aspect = float(stream.sample_aspect_ratio or 1)

    def read(self, sampling: Sampling) -> Iterator[tuple[float, RGB]]:
        """Yield (time in seconds, upright frame) of the sampled frames; damaged parts are skipped."""
        next_time = 0.0
        for time, frame in self.decode():
            if time + 1e-6 >= next_time:
                # After a gap, continue from the next frame instead of catching up with the missed times.
                next_time = max(next_time + sampling.step, time + 0.5 * sampling.step)
                yield time, self.convert(frame)

    def decode(self) -> Iterator[tuple[float, Any]]:
        """Yield (time in seconds from the first frame, PyAV frame) of all frames; the times never decrease."""
        self.reason, damaged, clock = None, 0, _Clock(1 / float(self.rate))
        with self._open() as container:
            stream = _choose_stream(container)
            _limit_memory(stream)
            length = _Length.read(container, stream)
            # The packets of the sound as well: if it outlasts the picture, they show that the file is complete.
            packets = container.demux()
            while damaged <= _MAX_DAMAGED_PACKETS:
                try:
                    packet = next(packets)
                    frames = packet.decode() if packet.stream.index == stream.index else []
                except (StopIteration, self._av.error.EOFError):
                    break
                except self._av.error.FFmpegError:
                    damaged += 1
                    continue
                length.add_packet(packet)
                for frame in frames:
                    yield clock.advance(frame), frame
        self.reason = _find_problem(clock, length, damaged)

    def convert(self, frame: Any) -> RGB:
        """Return a PyAV frame as RGB as it is displayed: with square pixels, rotated upright."""
        width, height = _choose_size(frame.width, frame.height, self._aspect)
        image: RGB = frame.to_ndarray(format="rgb24", width=width, height=height)
        # Degrees counter-clockwise, as in np.rot90.
        quarters = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image

    def _open(self) -> Any:
        # A damaged JPEG would also be a series of JPEGs.
        formats = f"{_FORMATS},mjpeg" if Path(self.path).suffix.lower() in _MOTION_JPEG else _FORMATS
        try:
            # Damaged titles and comments are no reason to reject the video.
            # FFmpeg also decodes frames while it opens a file.
            options = {"format_whitelist": formats, **_CODEC_OPTIONS}
            container = self._av.open(self.path, options=options, metadata_errors="replace")
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"not a readable video ({getattr(error, 'strerror', None) or error})") from error
        if _choose_stream(container) is None:
            container.close()
            raise DataError("not a readable video (audio only)")
        return container


@dataclass
class _Clock:
    """Times of frames, in seconds from the first one.

    Attributes:
        step: seconds per frame at the nominal rate.
        last: time of the last frame; -1 before the first one.
        end: when the last frame ends, as far as the file says how long it is shown.
        gap: the longest time between two frames.
        stuck: the number of frames since the times in the file last advanced.
        offset: what is added to the times in the file.
    """

    step: float
    last: float = -1.0
    end: float = 0.0
    gap: float = 0.0
    stuck: int = 0
    offset: float | None = None

    def advance(self, frame: Any) -> float:
        """Return the time of the next PyAV frame."""
        following = 0.0 if self.last < 0 else self.last + self.step
        time = following if frame.time is None else self._convert(frame.time, following)
        self.gap = max(self.gap, time - max(self.last, 0.0))
        # Older releases of PyAV do not give durations of frames.
        held = float((getattr(frame, "duration", None) or 0) * (frame.time_base or 0))
        self.last, self.end = time, max(self.end, time + held)
        return time

    def _convert(self, time: float, following: float) -> float:
        """Return a time in the file as time from the first frame; an appended recording follows the one before."""
        if self.offset is None:
            self.offset = following - time
        behind = self.last - (time + self.offset)
        self.stuck = self.stuck + 1 if behind >= 0 else 0
        if behind > max(_RESTART_SECONDS, _RESTART_FRAMES * self.step) or self.stuck > _RESTART_FRAMES:
            self.offset = following - time
        return max(time + self.offset, self.last)


@dataclass
class _Length:
    """How long a video should be, and how much of it could be read.

    Attributes:
        seconds: the length that the file gives for its picture, or for all streams; None if it gives none.
        start: the time at which the file begins.
        reached: seconds from the start to the end of the last packet, of the picture or the sound.
    """

    seconds: float | None
    start: float
    reached: float = 0.0

    @classmethod
    def read(cls, container: Any, stream: Any) -> _Length:
        """Read the length from an open file."""
        # PyAV gives times of containers in microseconds.
        start = (container.start_time or 0) / 1e6
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / 1e6
        else:
            return cls(None, start)
        # What Matroska and ASF call duration is the time of the end.
        return cls(seconds - max(start, 0.0), start)

    def add_packet(self, packet: Any) -> None:
        """Take account of a packet that could be read."""
        if packet.pts is not None and packet.time_base is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            self.reached = max(self.reached, end - self.start)


def _find_problem(clock: _Clock, length: _Length, damaged: int) -> str | None:
    """Return what is wrong with a video after its last frame, if anything."""
    if clock.last < 0:
        return f"the video has no frame (of at most {_MAX_FRAME_PIXELS // 10**6} megapixels) that can be decoded"
    # Not all files say how long a frame is shown. The last one may be shown as long as any other.
    reached = max(clock.end + max(2 * clock.step, clock.gap), length.reached)
    if length.seconds is not None and reached < _MIN_LENGTH * length.seconds:
        return f"the video is truncated: {clock.last:.1f} of {length.seconds:.1f} seconds could be read"
    if damaged:
        return f"the video is damaged in {damaged:,} places; its last readable frame is at {clock.last:.1f} seconds"
    return None


def _choose_stream(container: Any) -> Any:
    """Return the first video stream that is not a cover, as songs have; None if there is none."""
    from av.stream import Disposition

    videos = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return next(videos, None)


def _limit_memory(stream: Any) -> None:
    """Limit the memory that decoding takes, also if frames are larger than the file says."""
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = min(os.cpu_count() or 1, _MAX_THREADS)
    stream.codec_context.options = _CODEC_OPTIONS


def _choose_size(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Return (width, height) of a frame with square pixels, given the width of a pixel divided by its height.

    One side is enlarged, so that no detail is lost.
    """
    if not _MIN_ASPECT <= aspect <= _MAX_ASPECT or abs(aspect - 1) < _MIN_STRETCH:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


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
