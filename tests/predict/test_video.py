"""Videos: persons counted, times and turns right, what is broken read as far as it goes."""

import io
import json
import sys

import av
import numpy as np
import pytest
from clips import go, turn_clip, write_clip
from conftest import require_shared
from PIL import Image

from agegen import Estimator
from agegen.data.images import decode_image
from agegen.errors import DataError
from agegen.predict.extraction import NOTHING
from agegen.predict.tracking import VideoOptions, interpolate_box, watch_video
from agegen.predict.video import Sampling, Video


@pytest.fixture(scope="module")
def head(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]


@pytest.fixture(scope="module")
def clip(head, tmp_path_factory):
    """One face that comes from the left, and its mirror image in a lighter tone, there for some 1.6 seconds."""
    other = np.ascontiguousarray(255 - (255 - head[:, ::-1]) // 2)
    ways = [go((100, 180), (480, 200), 150), go((550, 150), (550, 200), 110, 1.0, 2.6)]
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", [head, other], ways)


@pytest.fixture(scope="module")
def estimator(trained_run):
    return Estimator.load(run=trained_run, device="cpu")


def watch(estimator, path, **options):
    watched = []
    return list(watch_video(estimator, str(path), VideoOptions(**options), NOTHING, watched)), watched[0]


def test_each_person_is_one_row(estimator, clip):
    (video,), watched = watch(estimator, clip)
    first, second = video.faces
    assert video.status == "ok"
    assert watched.frames == 8
    assert (first.person, second.person) == (1, 2)
    assert (first.first, first.frames) == (0.0, 8)
    assert first.last == pytest.approx(3.5, abs=0.11)
    assert 1.0 <= second.first <= 1.5 <= second.last <= 2.6
    assert second.frames == 4
    # Their box and landmarks are those of one frame.
    assert 0 <= first.time <= first.last
    left, top, right, bottom = first.box
    assert all(left < x < right and top < y < bottom for x, y in first.landmarks)


def test_frames_of_a_person_make_no_narrower_interval(estimator, clip):
    (video,), _ = watch(estimator, clip)
    frames, _ = watch(estimator, clip, frames=True)
    rows = [face for frame in frames for face in frame.faces if face.person == 1]
    assert len(rows) == 8
    widths = [face.age_high - face.age_low for face in rows]
    person = video.faces[0]
    assert min(widths) - 0.2 <= person.age_high - person.age_low <= max(widths) + 0.2
    assert min(face.age for face in rows) <= person.age <= max(face.age for face in rows)


def test_frames_are_rows_as_they_come(agegen, trained_run, clip):
    done = agegen("predict", clip, "--run", trained_run, "--frames", "--fps", "4", "--jsonl", "-")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert [row["time"] for row in rows if row["person"] == 1] == pytest.approx(np.arange(0, 4, 0.25), abs=0.11)
    assert {row["options"] for row in rows} == {"fps=4.0 frames=True"}


def test_an_animation_is_a_video_on_request(agegen, trained_run, head, tmp_path):
    frames = [Image.fromarray(np.ascontiguousarray(np.roll(head, 10 * shift, axis=1))) for shift in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=300)
    rows = json.loads(agegen("predict", tmp_path / "a.webp", "--run", trained_run, "--frames", "--json", "-").stdout)
    assert [row["time"] for row in rows] == [0.0, 0.3, 0.6]
    assert {row["person"] for row in rows} == {1}
    rows = json.loads(agegen("predict", tmp_path / "a.webp", "--run", trained_run, "--json", "-").stdout)
    assert [row.get("time") for row in rows] == [None]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_videos_stand_upright(clip, tmp_path, quarters):
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(clip.read_bytes())
    _, plain = next(Video(str(clip)).read(Sampling()))
    _, found = next(Video(str(turn_clip(turned, quarters))).read(Sampling()))
    assert np.array_equal(found, np.rot90(plain, -quarters))


def test_frames_are_sampled_by_their_times(head, tmp_path):
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.05, 3.0, 3.1, 3.6]
    path = write_clip(tmp_path / "v.mkv", [head], [go((200, 180), (300, 180), 150)], times=times)
    read = [time for time, _ in Video(str(path)).read(Sampling(fps=1))]
    assert read == pytest.approx([0, 1.0, 3.0, 3.6], abs=0.02) or read == pytest.approx([0, 1.0, 3.0], abs=0.02)
    assert [time for time, _ in Video(str(path)).read(Sampling(every=True))] == pytest.approx(times, abs=0.02)


def test_a_video_that_breaks_off_gives_what_could_be_read(agegen, trained_run, head, tmp_path):
    whole = write_clip(tmp_path / "whole.mkv", [head], [go((120, 180), (520, 200), 150)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    done = agegen("predict", cut, "--run", trained_run, "--json", "-")
    person, rest = json.loads(done.stdout)
    assert done.exit_code == 1
    assert person["status"] == "ok"
    assert 1.0 <= person["last"] <= 3.0
    assert rest["status"] == "unreadable"
    assert "the video breaks off" in rest["reason"]


def test_damaged_places_are_passed_over(estimator, head, tmp_path):
    path = write_clip(tmp_path / "d.mkv", [head], [go((120, 180), (520, 200), 150)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    (video,), _ = watch(estimator, path)
    assert video.faces[0].last > 2.5
    assert all(face.age is not None for face in video.faces)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not a readable video"),
        ("sound", "sound alone"),
        ("empty", "not a readable video"),
        ("no frame", "not a readable video"),
    ],
)
def test_what_is_no_video_is_one_row(agegen, trained_run, tmp_path, kind, message):
    path = tmp_path / "clip.mp4"
    if kind == "sound":
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
        path.write_bytes(b"no video" if kind == "text" else b"")
    done = agegen("predict", path, "--run", trained_run, "--json", "-")
    (row,) = json.loads(done.stdout)
    assert (row["status"], done.exit_code) == ("unreadable", 1)
    assert message in row["reason"]


def test_an_annotated_copy_has_all_frames_and_boxes_on_them(agegen, trained_run, clip, tmp_path):
    done = agegen("predict", clip, "--run", trained_run, "--annotate", tmp_path / "out", "--crops", tmp_path / "crops")
    assert done.exit_code == 0
    plain = [frame for _, frame in Video(str(clip)).read(Sampling(every=True))]
    drawn = [frame for _, frame in Video(str(tmp_path / "out" / "clip.mp4")).read(Sampling(every=True))]
    assert len(drawn) == len(plain) == 40
    # Between two looks, too: in frame 7 the first face is at some 190 pixels.
    change = np.abs(plain[7].astype(int) - drawn[7]).max(axis=2) > 90
    assert change[:, 80:330].sum() > 500
    assert change[:, 480:].sum() < 100
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == ["clip.mp4-1.png", "clip.mp4-2.png"]


def test_boxes_between_two_looks(estimator, clip):
    _, watched = watch(estimator, clip, keep_paths=True)
    _, track = watched.persons[0]
    left = [interpolate_box(track, time, 2.0)[0] for time in (0.0, 0.25, 0.5)]
    assert left[1] == pytest.approx((left[0] + left[2]) / 2, abs=1)
    assert interpolate_box(track, 99.0, 2.0) is None
    late = watched.persons[1][1]
    assert interpolate_box(late, 0.0, 2.0) is None


def test_frames_are_not_read_ahead_of_their_estimates(estimator, head):
    read = []

    def frames():
        for number in range(200):
            read.append(number)
            yield number / 2, head

    results = estimator.predict_frames("clip", frames())
    next(results)
    assert len(read) < 60
    results.close()


def test_without_its_package_a_video_says_what_to_install(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r'pip install "agegen\[video\]"'):
        Video(str(clip))


@pytest.mark.real
@pytest.mark.usefixtures("real_yunet")
def test_real_persons_who_cross_come_and_leave_are_counted(tmp_path):
    """Three of UTKFace's faces in each clip: two cross, one is there for a part of it."""
    faces = [
        path
        for path in sorted(require_shared("data/utkface").glob("*.jpg"))
        if 18 <= int(path.name.split("_")[0]) <= 70
    ]
    rng = np.random.default_rng(5)
    estimator = Estimator.load(detector="yunet")
    counted = []
    for number in range(4):
        chosen = [decode_image(faces[index].read_bytes()) for index in rng.integers(0, len(faces), 3)]
        ways = [
            go((100, 150), (540, 150), 120 + rng.integers(40)),
            go((540, 190), (100, 190), 120 + rng.integers(40)),
            go((320, 290), (360, 290), 100, *((2.0, 9.0) if number % 2 else (0.0, 2.0))),
        ]
        path = write_clip(tmp_path / f"{number}.mp4", chosen, ways, seed=number)
        (video,), _ = watch(estimator, path)
        counted.append(len(video.faces))
        spans = sorted(face.last - face.first for face in video.faces)
        assert spans[-1] >= 3.0
    assert counted == [3, 3, 3, 3]


def test_json_of_a_video_reads_back(agegen, trained_run, clip, tmp_path):
    agegen("predict", clip, "--run", trained_run, "--csv", tmp_path / "rows.csv")
    lines = io.StringIO((tmp_path / "rows.csv").read_text()).readlines()
    assert len(lines) == 3
    assert "person" in lines[0].split(",")
