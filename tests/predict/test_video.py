"""Videos and animations: times, rotation, sampling, and files that cannot be read completely."""

import io
import json
import os
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import add_sound, move, set_rotation, write_clip
from PIL import Image

from agegen.errors import DataError
from agegen.predict.video import Sampling, Video, is_video


@pytest.fixture(scope="module")
def head(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]


@pytest.fixture(scope="module")
def clip(head, tmp_path_factory):
    """One face that moves from left to right."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", [head], [move((100, 180), (480, 200), 150)])


def test_animations_are_videos_only_on_request(tmp_path, head):
    frames = [Image.fromarray(head), Image.fromarray(255 - head)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=300)
    frames[0].save(tmp_path / "still.webp")
    assert is_video("missing.mp4", animations=False)
    assert not is_video(str(tmp_path / "a.webp"), animations=False)
    assert is_video(str(tmp_path / "a.webp"), animations=True)
    assert not is_video(str(tmp_path / "still.webp"), animations=True)
    assert not is_video("missing.gif", animations=True)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotated_videos_are_upright(clip, tmp_path, quarters):
    rotated = tmp_path / "rotated.mp4"
    rotated.write_bytes(clip.read_bytes())
    _, plain = next(Video(str(clip)).read(Sampling()))
    _, found = next(Video(str(set_rotation(rotated, quarters))).read(Sampling()))
    assert np.array_equal(found, np.rot90(plain, -quarters))


def test_frames_are_sampled_by_their_times(head, tmp_path):
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.05, 3.0, 3.1, 3.6]
    path = write_clip(tmp_path / "v.mkv", [head], [move((200, 180), (300, 180), 150)], times=times)
    read = [time for time, _ in Video(str(path)).read(Sampling(fps=1))]
    assert read == pytest.approx([0, 1.0, 3.0, 3.6], abs=0.02) or read == pytest.approx([0, 1.0, 3.0], abs=0.02)
    assert [time for time, _ in Video(str(path)).read(Sampling(every=True))] == pytest.approx(times, abs=0.02)


def read_times(path):
    return [time for time, _ in Video(str(path)).read(Sampling(every=True))]


def test_appended_recordings_continue_the_times(head, tmp_path):
    """Cameras write a recording in several files, whose times begin anew; people join them with `cat`."""
    part = write_clip(tmp_path / "part.ts", [head], [move((200, 180), (300, 180), 150)], seconds=2)
    (tmp_path / "joined.ts").write_bytes(part.read_bytes() * 3)
    video = Video(str(tmp_path / "joined.ts"))
    assert [time for time, _ in video.read(Sampling(every=True))] == pytest.approx(np.arange(0, 6, 0.1), abs=0.01)
    assert [time for time, _ in video.read(Sampling())] == pytest.approx(np.arange(0, 6, 0.5), abs=0.01)
    assert video.reason is None


def write_with_codec(path, codec, image, count=25, **options):
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = image.shape[1], image.shape[0]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_times_that_stand_still_are_replaced(head, tmp_path):
    """Of joined MXF files all later frames have the last time of the first file."""
    part = write_with_codec(tmp_path / "part.mxf", "mpeg2video", head)
    (tmp_path / "joined.mxf").write_bytes(part.read_bytes() * 2)
    times = read_times(tmp_path / "joined.mxf")
    assert len(times) == 50
    assert times[-1] > 1.7
    assert np.all(np.diff(times) >= 0)


def test_motion_jpeg_is_a_video(head, tmp_path):
    path = write_with_codec(tmp_path / "camera.mjpg", "mjpeg", head, format="mjpeg")
    assert is_video(str(path), animations=False)
    assert len(read_times(path)) == 25


@pytest.mark.parametrize("name", ["v.mkv", "v.webm", "v.flv", "v.ts", "v.mp4"])
@pytest.mark.parametrize("start", [5, 3600])
def test_recordings_may_begin_at_any_time(head, tmp_path, name, start):
    times = [start + number / 10 for number in range(20)]
    kind = "matroska" if name.endswith("webm") else None
    motion = move((200, 180), (300, 180), 150)
    path = write_clip(tmp_path / name, [head], [lambda time: motion(time - start)], times=times, kind=kind)
    video = Video(str(path))
    found = [time for time, _ in video.read(Sampling(every=True))]
    assert found == pytest.approx(np.arange(0, 2, 0.1), abs=0.01)
    assert video.reason is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv", "ts"])
def test_the_sound_may_outlast_the_picture(head, tmp_path, suffix):
    plain = write_clip(tmp_path / "plain.mp4", [head], [move((200, 180), (300, 180), 150)], seconds=2)
    video = Video(str(add_sound(plain, tmp_path / f"sound.{suffix}", 6)))
    assert len(list(video.read(Sampling(every=True)))) == 20
    assert video.reason is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_truncated_videos_with_sound_are_reported(head, tmp_path, suffix):
    plain = write_clip(tmp_path / "plain.mp4", [head], [move((200, 180), (300, 180), 150)])
    complete = add_sound(plain, tmp_path / f"sound.{suffix}", 4)
    content = complete.read_bytes()
    if suffix == "mp4":
        # Zeros instead of a cut: this file has its index at the end.
        middle = len(content) * 6 // 10
        content = content[:middle] + bytes(content.index(b"moov") - 4 - middle) + content[content.index(b"moov") - 4 :]
    else:
        content = content[: len(content) * 6 // 10]
    complete.write_bytes(content)
    video = Video(str(complete))
    assert 0 < len(read_times(complete)) < 40
    list(video.decode())
    assert video.reason is not None


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_last_frame_may_be_shown_for_long(head, tmp_path, suffix):
    """A screen recording has a frame only when something changes."""
    times = [0, 0.1, 2.0, 2.1, 2.2]
    plain = write_clip(tmp_path / "plain.mp4", [head], [move((200, 180), (300, 180), 150)], times=times)
    path = tmp_path / f"held.{suffix}"
    with av.open(str(plain)) as read, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                if packet.pts * packet.time_base > 2.15:
                    packet.duration = round(1.8 / packet.time_base)
                container.mux(packet)
    video = Video(str(path))
    assert len(list(video.decode())) == 5
    assert video.reason is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_frames_have_square_pixels(head, tmp_path, suffix):
    paths = [move((160, 180), (160, 180), 150)]
    wide = write_clip(tmp_path / f"w.{suffix}", [head], paths, seconds=0.5, size=(320, 360), aspect=2)
    _, frame = next(Video(str(wide)).read(Sampling()))
    assert frame.shape == (360, 640, 3)
    narrow = write_clip(tmp_path / f"n.{suffix}", [head], paths, seconds=0.5, size=(320, 360), aspect=Fraction(8, 9))
    _, frame = next(Video(str(narrow)).read(Sampling()))
    assert frame.shape == (405, 320, 3)


def test_square_pixels_and_rotation_go_together(head, tmp_path):
    paths = [move((160, 180), (160, 180), 150)]
    wide = write_clip(tmp_path / "w.mp4", [head], paths, seconds=0.5, size=(320, 360), aspect=2)
    _, frame = next(Video(str(set_rotation(wide, 1))).read(Sampling()))
    assert frame.shape == (640, 360, 3)


def test_raw_streams_have_the_times_of_their_rate(head, tmp_path):
    path = write_clip(tmp_path / "camera.h264", [head], [move((200, 180), (300, 180), 150)], seconds=2)
    assert read_times(path) == pytest.approx(np.arange(20) / float(Video(str(path)).rate), abs=0.01)


def test_files_are_videos_by_their_content(head, clip, tmp_path):
    """Whatever their names: cameras and programs have many extensions, and people rename files."""
    for name in ("clip.jpg", "clip.heic", "clip.dat", "clip", "clip.gif", "clip.unknown"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert is_video(str(tmp_path / name), animations=False), name
    Image.fromarray(head).save(tmp_path / "photo.mp4", "JPEG")
    Image.fromarray(head).save(tmp_path / "photo.bmp")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nclip.jpg\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile clip.jpg\n")
    for name in ("photo.mp4", "photo.bmp", "list.m3u8", "list.txt", "missing.dat", "."):
        assert not is_video(str(tmp_path / name), animations=True), name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damaged_images_are_not_videos(head, tmp_path, kind):
    stream = io.BytesIO()
    Image.fromarray(head).save(stream, kind)
    content = stream.getvalue()
    for number, damaged in enumerate([b"xx" + content, content[3:], content[:2] + content[5:], bytes(20) + content]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(damaged)
        assert not is_video(str(path), animations=False)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_named_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert not is_video(str(tmp_path / "pipe.jpg"), animations=True)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DataError, match="not a regular file"):
        Video(str(tmp_path / "pipe.mp4"))


def test_songs_with_a_cover_are_not_videos(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound, cover = container.add_stream("aac", rate=48000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 48000
        container.mux([*sound.encode(tone), *sound.encode(), *cover.encode()])
    with pytest.raises(DataError, match="audio only"):
        Video(str(path))
    assert not is_video(str(path), animations=True)


def test_a_truncated_video_gives_the_readable_part(agegen, trained_run, head, tmp_path):
    complete = write_clip(tmp_path / "complete.mkv", [head], [move((120, 180), (520, 200), 150)])
    truncated = tmp_path / "truncated.mkv"
    truncated.write_bytes(complete.read_bytes()[: complete.stat().st_size * 6 // 10])
    done = agegen("predict", truncated, "--run", trained_run, "--json", "-")
    person, rest = json.loads(done.stdout)
    assert done.exit_code == 1
    assert person["status"] == "ok"
    assert 1.0 <= person["last"] <= 3.0
    assert rest["status"] == "unreadable"
    assert "the video is truncated" in rest["reason"]


def test_damaged_parts_are_skipped(clip, tmp_path, head):
    path = write_clip(tmp_path / "d.mkv", [head], [move((120, 180), (520, 200), 150)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    times = [time for time, _ in Video(str(path)).read(Sampling())]
    assert times[-1] > 2.5


def test_a_damaged_title_is_no_reason_to_reject_a_video(clip, tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "a title in UTF-8"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"a title in UTF-8", b"a title in \xff\x87\xfe-8"))
    assert len(list(Video(str(path)).read(Sampling()))) > 1


def test_closing_a_damaged_video_does_not_deadlock(tmp_path, head):
    """Decoder threads that report errors must not wait for the thread that waits for them."""
    path = write_clip(tmp_path / "d.mkv", [head], [move((120, 180), (520, 200), 150)])
    content = bytearray(path.read_bytes())
    for start in range(2000, len(content) - 200, 9000):
        content[start : start + 150] = bytes(150)
    path.write_bytes(bytes(content))
    code = (
        "from agegen.predict.video import Sampling, Video\n"
        "for _ in range(100):\n"
        f"    frames = Video({str(path)!r}).read(Sampling())\n"
        "    next(frames, None)\n"
        "    frames.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not a readable video"),
        ("audio", "audio only"),
        ("empty", "not a readable video"),
        ("no frame", "not a readable video"),
    ],
)
def test_unreadable_videos_are_one_row(agegen, trained_run, tmp_path, kind, message):
    path = tmp_path / "clip.mp4"
    if kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif kind == "no frame":
        path = tmp_path / "clip.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
    else:
        path.write_bytes(b"not a video" if kind == "text" else b"")
    done = agegen("predict", path, "--run", trained_run, "--json", "-")
    (row,) = json.loads(done.stdout)
    assert (row["status"], done.exit_code) == ("unreadable", 1)
    assert message in row["reason"]


@pytest.mark.parametrize("declared", [(9000, 8000), (64, 64)])
def test_frames_that_would_fill_the_memory_are_refused(tmp_path, declared):
    """A frame of black pixels has some kilobytes; the file may say that it is smaller."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=2)
        stream.width, stream.height, stream.pix_fmt = 9000, 8000, "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((8000, 9000), np.uint8), format="gray")))
        container.mux(stream.encode())
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<II", 9000, 8000), struct.pack("<II", *declared)))
    code = (
        "import resource, sys\n"
        "from agegen.predict.video import Sampling, Video\n"
        "video = Video(sys.argv[1])\n"
        "before = resource.getrusage(0).ru_maxrss\n"
        "print(len(list(video.read(Sampling()))), (resource.getrusage(0).ru_maxrss - before) // 1024, video.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=True)
    frames, megabytes, reason = done.stdout.split(maxsplit=2)
    assert (frames, int(megabytes) < 50) == ("0", True)
    assert "at most 70 megapixels" in reason


def test_a_missing_package_is_reported(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r'pip install "agegen\[video\]"'):
        Video(str(clip))
