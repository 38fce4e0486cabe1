"""Videos and animations: times, rotation, sampling, and files that cannot be read completely."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
from clips import move, set_rotation, write_clip
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


def test_a_missing_package_is_reported(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r'pip install "agegen\[video\]"'):
        Video(str(clip))
