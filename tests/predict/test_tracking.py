"""Persons in videos: counted, averaged over frames, and annotated."""

import io
import json

import av
import numpy as np
import pytest
from clips import move, write_clip
from conftest import require_shared
from PIL import Image

from agegen import Estimator
from agegen.data.images import decode_image
from agegen.predict.results import KEEP_NOTHING, KeepOptions
from agegen.predict.tracking import interpolate_box, predict_video
from agegen.predict.video import Sampling, Video, VideoOptions


@pytest.fixture(scope="module")
def head(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]


@pytest.fixture(scope="module")
def clip(head, tmp_path_factory):
    """One face that comes from the left, and its mirror image in a lighter tone, visible for about 1.6 seconds."""
    other = np.ascontiguousarray(255 - (255 - head[:, ::-1]) // 2)
    paths = [move((100, 180), (480, 200), 150), move((550, 150), (550, 200), 110, 1.0, 2.6)]
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", [head, other], paths)


@pytest.fixture(scope="module")
def estimator(trained_run):
    return Estimator.load(run=trained_run, device="cpu")


def predict(estimator, path, frames=False, keep=KEEP_NOTHING):
    """Return the results per frame, and the result for the video."""
    generator = predict_video(estimator, str(path), VideoOptions(frames=frames), keep)
    photos = []
    while True:
        try:
            photos.append(next(generator))
        except StopIteration as end:
            return photos, end.value


def test_each_person_is_one_row(estimator, clip):
    photos, result = predict(estimator, clip)
    assert photos == []
    first, second = result.final.faces
    assert result.final.status == "ok"
    assert result.frames == 8
    assert (first.person, second.person) == (1, 2)
    assert (first.first, first.frames) == (0.0, 8)
    assert first.last == pytest.approx(3.5, abs=0.11)
    assert 1.0 <= second.first <= 1.5 <= second.last <= 2.6
    assert second.frames == 4
    # Bounding box and landmarks are those of one frame.
    assert 0 <= first.time <= first.last
    left, top, right, bottom = first.box
    assert all(left < x < right and top < y < bottom for x, y in first.landmarks)


def test_more_frames_do_not_narrow_the_interval(estimator, clip):
    _, result = predict(estimator, clip)
    photos, per_frame = predict(estimator, clip, frames=True)
    assert per_frame.final is None
    rows = [face for photo in photos for face in photo.faces if face.person == 1]
    assert len(rows) == 8
    widths = [face.age_high - face.age_low for face in rows]
    person = result.final.faces[0]
    assert min(widths) - 0.2 <= person.age_high - person.age_low <= max(widths) + 0.2
    assert min(face.age for face in rows) <= person.age <= max(face.age for face in rows)


def test_each_face_of_each_frame_is_a_row_on_request(agegen, trained_run, clip):
    done = agegen("predict", clip, "--run", trained_run, "--frames", "--fps", "4", "--jsonl", "-")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert [row["time"] for row in rows if row["person"] == 1] == pytest.approx(np.arange(0, 4, 0.25), abs=0.11)
    assert {row["options"] for row in rows} == {"fps=4.0 frames=True"}


@pytest.mark.parametrize(("words", "count"), [((), 2), (("--frames",), 10)])
def test_report_has_the_crops_of_persons_or_frames(agegen, trained_run, clip, tmp_path, words, count):
    agegen("predict", clip, "--run", trained_run, "--report", tmp_path / "faces.html", *words)
    text = (tmp_path / "faces.html").read_text()
    assert text.count('"thumb":"') == text.count('"person":') >= count
    assert " in 1 file; 0 without a face, 0 unreadable" in text


def test_an_animation_is_a_video_on_request(agegen, trained_run, head, tmp_path):
    frames = [Image.fromarray(np.ascontiguousarray(np.roll(head, 10 * shift, axis=1))) for shift in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=300)
    rows = json.loads(agegen("predict", tmp_path / "a.webp", "--run", trained_run, "--frames", "--json", "-").stdout)
    assert [row["time"] for row in rows] == [0.0, 0.3, 0.6]
    assert {row["person"] for row in rows} == {1}
    rows = json.loads(agegen("predict", tmp_path / "a.webp", "--run", trained_run, "--json", "-").stdout)
    assert [row.get("time") for row in rows] == [None]


def test_damaged_parts_do_not_end_a_track(estimator, head, tmp_path):
    path = write_clip(tmp_path / "d.mkv", [head], [move((120, 180), (520, 200), 150)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    _, result = predict(estimator, path)
    assert result.final.faces[0].last > 2.5
    assert all(face.age is not None for face in result.final.faces)


def test_the_annotated_copy_has_all_frames_with_boxes(agegen, trained_run, clip, tmp_path):
    done = agegen("predict", clip, "--run", trained_run, "--annotate", tmp_path / "out", "--crops", tmp_path / "crops")
    assert done.exit_code == 0
    plain = [frame for _, frame in Video(str(clip)).read(Sampling(every=True))]
    annotated = [frame for _, frame in Video(str(tmp_path / "out" / "clip.mp4")).read(Sampling(every=True))]
    assert len(annotated) == len(plain) == 40
    # Frame 7 is between two sampled frames; its first face is at about 190 pixels.
    change = np.abs(plain[7].astype(int) - annotated[7]).max(axis=2) > 90
    assert change[:, 80:330].sum() > 500
    assert change[:, 480:].sum() < 100
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == ["clip.mp4-1.png", "clip.mp4-2.png"]


@pytest.mark.parametrize(
    "times",
    [[0, 0.033, 0.066, 0.1, 0.134, 0.3, 1.0, 1.001, 2.5], [0, 0.1, 0.2, 0.2, 0.2, 0.3], [0, 0.1, 0.2, 90.0, 90.1]],
)
def test_the_annotated_copy_has_the_times_of_a_variable_frame_rate(agegen, trained_run, head, tmp_path, times):
    # Times that repeat, as those of webcams do, are moved apart by the encoder of the test itself.
    distinct = [time + 0.001 * times[:number].count(time) for number, time in enumerate(times)]
    path = write_clip(tmp_path / "v.mkv", [head], [move((200, 180), (200, 180), 150)], times=distinct)
    done = agegen("predict", path, "--run", trained_run, "--annotate", tmp_path / "out")
    assert (done.exit_code, done.stderr.count("error")) == (0, 0)
    copied = [time for time, _ in Video(str(tmp_path / "out" / "v.mkv.mp4")).decode()]
    assert copied == pytest.approx(distinct, abs=0.001)


def test_copies_of_joined_and_anamorphic_videos(agegen, trained_run, head, tmp_path):
    part = write_clip(tmp_path / "part.ts", [head], [move((160, 180), (160, 180), 150)], 1, size=(320, 360), aspect=2)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    agegen("predict", joined, "--run", trained_run, "--annotate", tmp_path / "out")
    copy = [
        (time, frame.shape) for time, frame in Video(str(tmp_path / "out" / "joined.ts.mp4")).read(Sampling(every=True))
    ]
    assert [time for time, _ in copy] == pytest.approx(np.arange(0, 2, 0.1), abs=0.01)
    assert {shape for _, shape in copy} == {(360, 640, 3)}


def write_lossless(path, width, height):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width), np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("size", [(1, 1), (63, 1), (101, 33)])
def test_copies_have_even_sides(agegen, trained_run, tmp_path, size):
    write_lossless(tmp_path / "v.mkv", *size)
    done = agegen("predict", tmp_path / "v.mkv", "--run", trained_run, "--annotate", tmp_path / "out", "--json", "-")
    assert json.loads(done.stdout)[0]["status"] == "no_face"
    _, frame = next(Video(str(tmp_path / "out" / "v.mkv.mp4")).read(Sampling()))
    assert frame.shape[1::-1] == tuple(side + side % 2 for side in size)


def test_a_copy_that_fails_does_not_end_the_run(agegen, trained_run, portrait, tmp_path):
    """H.264 has no frames of this width."""
    write_lossless(tmp_path / "wide.mkv", 17_000, 16)
    words = ("--run", trained_run, "--json", "-", "--annotate", tmp_path / "out")
    done = agegen("predict", tmp_path / "wide.mkv", portrait, *words)
    video, photo = json.loads(done.stdout)
    assert (video["status"], photo["status"], done.exit_code) == ("unreadable", "ok", 1)
    assert "annotated copy cannot be encoded" in video["reason"]
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_a_video_named_as_an_image_is_a_video(agegen, trained_run, clip, portrait, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "clip.jpg").write_bytes(clip.read_bytes())
    (photos / "clip.VOB").write_bytes(clip.read_bytes())
    (photos / "photo.mp4").write_bytes(portrait.read_bytes())
    (photos / "readme.doc").write_bytes(b"text")
    words = ("--run", trained_run, "--json", "-", "--annotate", tmp_path / "out")
    done = agegen("predict", photos, photos / "readme.doc", *words)
    rows = json.loads(done.stdout)
    assert [(row["file"][len(str(photos)) + 1 :], row["status"], row.get("person")) for row in rows] == [
        ("clip.VOB", "ok", 1),
        ("clip.VOB", "ok", 2),
        ("clip.jpg", "ok", 1),
        ("clip.jpg", "ok", 2),
        ("photo.mp4", "ok", None),
        ("readme.doc", "unreadable", None),
    ]
    copies = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert copies == ["clip.VOB.mp4", "clip.jpg.mp4", "photo.mp4.png"]


def test_the_reason_of_a_truncated_video_comes_after_its_frames_and_copy(agegen, trained_run, head, tmp_path):
    complete = write_clip(tmp_path / "complete.mkv", [head], [move((120, 180), (520, 200), 150)])
    truncated = tmp_path / "truncated.mkv"
    truncated.write_bytes(complete.read_bytes()[: complete.stat().st_size * 6 // 10])
    words = ("--run", trained_run, "--frames", "--jsonl", "-", "--annotate", tmp_path / "out")
    rows = [json.loads(line) for line in agegen("predict", truncated, *words).stdout.splitlines()]
    assert {row["status"] for row in rows[:-1]} == {"ok"}
    assert rows[-1]["status"] == "unreadable"
    assert (tmp_path / "out" / "truncated.mkv.mp4").exists()


def test_boxes_are_interpolated_between_frames(estimator, clip):
    _, result = predict(estimator, clip, keep=KeepOptions(tracks=True))
    _, track = result.persons[0]
    left = [interpolate_box(track, time, 2.0)[0] for time in (0.0, 0.25, 0.5)]
    assert left[1] == pytest.approx((left[0] + left[2]) / 2, abs=1)
    assert interpolate_box(track, 99.0, 2.0) is None
    late = result.persons[1][1]
    assert interpolate_box(late, 0.0, 2.0) is None


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.usefixtures("real_yunet")
def test_real_persons_who_cross_are_counted(tmp_path):
    """Three of UTKFace's faces in each clip: two cross, one is visible for part of the time."""
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
        paths = [
            move((100, 150), (540, 150), 120 + rng.integers(40)),
            move((540, 190), (100, 190), 120 + rng.integers(40)),
            move((320, 290), (360, 290), 100, *((2.0, 9.0) if number % 2 else (0.0, 2.0))),
        ]
        path = write_clip(tmp_path / f"{number}.mp4", chosen, paths, seed=number)
        _, result = predict(estimator, path)
        counted.append(len(result.final.faces))
        durations = sorted(face.last - face.first for face in result.final.faces)
        assert durations[-1] >= 3.0
    assert counted == [3, 3, 3, 3]


def test_csv_has_a_row_per_person(agegen, trained_run, clip, tmp_path):
    agegen("predict", clip, "--run", trained_run, "--csv", tmp_path / "rows.csv")
    lines = io.StringIO((tmp_path / "rows.csv").read_text()).readlines()
    assert len(lines) == 3
    assert "person" in lines[0].split(",")
