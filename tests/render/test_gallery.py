"""The page of predicted faces: its counts, its sample, its escapes, and how it is continued."""

import base64
import hashlib
import html
import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from browsing import launch_chromium
from PIL import Image

from agegen.errors import AgegenError
from agegen.render.gallery import (
    LOW_SCORE,
    UNCERTAIN_GENDER,
    GalleryAbout,
    GalleryTally,
    encode_thumbnail,
    list_doubts,
    make_link,
    open_gallery,
)

ABOUT = GalleryAbout(("photos/",), "compact 0.1.0", "yunet", "min_score=0.5")
CROP = np.full((96, 96, 3), 90, np.uint8)
HOSTILE = "</script><script>alert(1)</script>\u2028\u202e\x1b[0m\"'&amp;%%FACES%%\udcff.jpg"


def make_face(file="photos/a.jpg", face=1, **values):
    ages = {"age": 30.4, "age_low": 20.0, "age_high": 41.0}
    estimates = {"gender": "female", "p_female": 0.97, "score": 0.99, "box": (10, 20, 30, 60)}
    return {"file": file, "status": "ok", "face": face, **ages, **estimates, **values}


def write(path, rows, crop=CROP, **options):
    with open_gallery(path, ABOUT, **options) as gallery:
        for row in rows:
            gallery.add(row, crop if row.get("face") else None, (40, 80))


def read_data(path):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


def read_faces(path):
    return read_data(path)["faces"]


def read_text(path):
    """Return the visible text of the page, without its scripts."""
    without = re.sub(r"<(script|style).*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", without)).split())


def test_page_has_the_values_of_the_rows(tmp_path):
    rows = [make_face(), make_face(face=2, person=3, time=1.5), {"file": "b.jpg", "status": "no_face"}]
    write(tmp_path / "page.html", rows)
    first, second = read_faces(tmp_path / "page.html")
    assert (first["age"], first["p_female"], first["box"]) == (30.4, 0.97, [10, 20, 30, 60])
    assert (first["width"], first["height"], second["person"], second["time"]) == (40, 80, 3, 1.5)
    assert "person" not in first
    assert base64.b64decode(first["thumb"]).startswith(b"\xff\xd8")
    text = read_text(tmp_path / "page.html")
    assert "2 faces in 2 files; 1 without a face, 0 unreadable" in text
    assert "options: min_score=0.5" in text
    assert "Incomplete" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_untrusted_text_is_escaped(tmp_path):
    page = tmp_path / "page.html"
    about = GalleryAbout((HOSTILE,), HOSTILE, "yunet", HOSTILE)
    rows = [
        make_face(HOSTILE, doubts=[HOSTILE]),
        {"file": HOSTILE + "2", "status": "unreadable", "reason": HOSTILE},
    ]
    with open_gallery(page, about) as gallery:
        for row in rows:
            gallery.add(row, CROP)
    content = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in content
    assert not re.search("[\u2028\u202e\x1b]", content)
    (face,) = read_faces(page)
    shown = "</script><script>alert(1)</script>\\u2028\\u202e\\x1b[0m\"'&amp;%%FACES%%\ufffd.jpg"
    assert face["file"] == face["doubts"][0] == shown
    # As title and heading, model, options, file and reason.
    assert read_text(page).count(shown) == 6


def test_thousands_of_inputs_are_not_listed(tmp_path):
    with open_gallery(tmp_path / "page.html", GalleryAbout([f"{n}.jpg" for n in range(2000)], "", "")):
        pass
    assert "Faces in 0.jpg, 1.jpg, 2.jpg and 1,997 more 0 faces" in read_text(tmp_path / "page.html")


def test_only_the_scripts_of_the_page_may_run(tmp_path):
    write(tmp_path / "page.html", [make_face()])
    content = (tmp_path / "page.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', content)
    scripts = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    (sources,) = re.findall("script-src ([^;]+);", policy)
    assert set(sources.split()) == {f"'sha256-{digest}'" for digest in hashes}
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"<[^>]+\son\w+=", content)
    assert not re.search(r"(src|href)=\"?(https?:)?//", content)


def test_a_sample_is_small_random_and_always_the_same(tmp_path):
    rows = [make_face(f"{number}.jpg", age=50.0 if number % 2 else 20.0) for number in range(400)]
    write(tmp_path / "all.html", rows)
    size = max(len(json.dumps(face)) for face in read_faces(tmp_path / "all.html"))
    write(tmp_path / "a.html", rows, max_bytes=100 * size)
    write(tmp_path / "b.html", rows[::-1], max_bytes=100 * size)
    shown = [face["file"] for face in read_faces(tmp_path / "a.html")]
    assert 95 <= len(shown) <= 115
    assert shown == sorted(shown, key=lambda name: int(name[:-4]))
    assert set(shown) == {face["file"] for face in read_faces(tmp_path / "b.html")}
    # 95 % of random samples have 40 to 60 of each half.
    assert 35 <= sum(face["age"] == 50 for face in read_faces(tmp_path / "a.html")) <= 75
    assert sum(int(name[:-4]) < 200 for name in shown) in range(35, 75)
    bins = read_data(tmp_path / "a.html")["summary"]["bins"]
    assert {index: one["count"] for index, one in enumerate(bins) if one["count"]} == {4: 200, 10: 200}
    text = read_text(tmp_path / "a.html")
    assert f"a random sample of {len(shown)} faces" in text
    assert "cover all 400" in text
    assert "random sample" not in read_text(tmp_path / "all.html")


def test_counts_of_files():
    tally = GalleryTally()
    unreadable = {"file": "broken.mp4", "status": "unreadable", "reason": "it breaks off"}
    frames = [make_face("clip.mp4", time=0.0), {"file": "clip.mp4", "status": "no_face", "time": 0.5}]
    rows = [
        *frames,
        make_face("broken.mp4"),
        unreadable,
        {"file": "empty.gif", "status": "no_face", "time": 0.0},
        {"file": "empty.gif", "status": "no_face", "time": 0.1},
        make_face("ageless.jpg", age=None, age_low=None, age_high=None, gender="uncertain"),
    ]
    for row in rows:
        tally.add(row)
    tally.end_file()
    assert (tally.files, tally.faces, tally.no_face, tally.unreadable, tally.without_age) == (4, 3, 1, 1, 1)
    assert [tuple(asdict(one).values()) for one in tally.problems] == [
        ("broken.mp4", "it breaks off"),
        ("empty.gif", "no face"),
    ]
    assert tally.genders == {"female": 2, "uncertain": 1}
    assert tally.to_json()["bins"][6] == {"count": 2, "low": 20.0, "high": 41.0}


@pytest.mark.parametrize("error", [KeyboardInterrupt, AgegenError("the disk is full")])
def test_after_an_interruption_the_page_says_so(tmp_path, error):
    page = tmp_path / "page.html"
    page.write_text("an older page")
    with pytest.raises((KeyboardInterrupt, AgegenError)), open_gallery(page, ABOUT) as gallery:
        gallery.add(make_face(), CROP)
        raise error
    assert "Incomplete: the prediction was interrupted" in read_text(page)
    assert len(read_faces(page)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_is_continued_with_its_thumbnails(tmp_path):
    page = tmp_path / "page.html"
    rows = [make_face("a.jpg"), make_face("b.jpg")]
    write(page, rows, crop=np.full((96, 96, 3), 200, np.uint8))
    thumbs = [face["thumb"] for face in read_faces(page)]
    with open_gallery(page, ABOUT, resume=True) as gallery:
        for row in rows:
            gallery.add(row)
        gallery.add(make_face("c.jpg"), CROP, (40, 80))
        gallery.add(make_face("unknown.jpg"))
    faces = read_faces(page)
    assert [face.get("thumb") for face in faces] == [*thumbs, encode_thumbnail(CROP).data, None]
    assert [face.get("width") for face in faces] == [40, 40, 40, None]


def test_after_a_kill_the_thumbnails_are_in_the_temporary_file(tmp_path):
    page = tmp_path / "page.html"
    gallery = open_gallery(page, ABOUT)
    writer = gallery.__enter__()
    writer.add(make_face("a.jpg"), CROP)
    writer.flush()
    part = page.with_name("page.html.part")
    part.write_bytes(part.read_bytes() + b'{"key":"12')
    with open_gallery(page, ABOUT, resume=True) as continued:
        continued.add(make_face("a.jpg"))
        continued.add(make_face("b.jpg"), CROP)
    assert [face["thumb"] for face in read_faces(page)] == 2 * [encode_thumbnail(CROP).data]
    assert not part.exists()


@pytest.mark.parametrize("line", ["null", "[1]", '{"key":"xyz","thumb":"AAAA"}', '{"key":"1f","thumb":"<b>"}', "\0\n{"])
def test_a_damaged_page_has_no_thumbnails(tmp_path, line):
    page = tmp_path / "page.html"
    page.write_text(f'<script id="data">\n{line},\n</script>')
    with open_gallery(page, ABOUT, resume=True) as gallery:
        gallery.add(make_face())
    assert "thumb" not in read_faces(page)[0]


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AgegenError, match="cannot write"), open_gallery(tmp_path / "file" / "page.html", ABOUT):
        pass


def test_doubts_are_those_of_the_row_and_of_its_values():
    assert list_doubts(make_face()) == []
    assert list_doubts(make_face(gender="uncertain", score=0.4)) == [UNCERTAIN_GENDER, LOW_SCORE]
    assert list_doubts(make_face(doubts=("blurred", "small"), score=None)) == ["blurred", "small"]
    assert list_doubts(make_face(doubts="blurred; small")) == ["blurred", "small"]


def test_photos_are_linked_only_below_the_page(tmp_path, monkeypatch):
    album = tmp_path / "album"
    (album / "sub").mkdir(parents=True)
    outside = tmp_path / "outside.jpg"
    for path in (outside, album / "a#b %.jpg", album / "data:x.jpg", album / "sub" / "é?.jpg"):
        path.touch()
    (album / "elsewhere").symlink_to(tmp_path)
    monkeypatch.chdir(album)
    folder = str(album.resolve())
    assert make_link("a#b %.jpg", folder) == "./a%23b%20%25.jpg"
    assert make_link("data:x.jpg", folder) == "./data%3Ax.jpg"
    assert make_link(str(album / "sub" / "é?.jpg"), folder) == "./sub/%C3%A9%3F.jpg"
    assert make_link("sub/../a#b %.jpg", folder) == "./a%23b%20%25.jpg"
    for name in (str(outside), "../outside.jpg", "elsewhere/outside.jpg", "missing.jpg", "https://x/a.jpg", "-"):
        assert make_link(name, folder) is None, name


def test_thumbnails_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert len(encode_thumbnail(noise).data) < 10_000
    assert encode_thumbnail(CROP, (30, 40)).height == 40


@pytest.fixture(scope="module")
def chromium():
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(params=[(1200, "light"), (400, "dark")], ids=["wide", "narrow"])
def window(chromium, request):
    """A window whose messages and requests are kept."""
    width, scheme = request.param
    window = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    window.set_default_timeout(60_000)
    window.messages, window.requests = [], []
    window.on("console", lambda message: window.messages.append(message.text))
    window.on("pageerror", lambda error: window.messages.append(str(error)))
    window.on("request", lambda request: window.requests.append(request.url))
    yield window
    window.close()


def write_album(folder, count):
    """Write a page of ``count`` faces; the first is in a photo that is stored on its side, at a known place."""
    photos = folder / "photos"
    (photos / "sub").mkdir(parents=True)
    image = Image.new("RGB", (600, 400), "green")
    image.paste("red", (120, 80, 240, 240))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(photos / "turned #1.jpg", exif=exif, quality=95)
    rows = [make_face(str(photos / "turned #1.jpg"), age=90.0, box=(120, 80, 240, 240))]
    for number in range(1, count):
        gender = ("female", "male", "uncertain")[number % 3]
        name = f"{photos}/{'sub/' if number % 2 else ''}{number}.jpg"
        p_female = {"female": 0.8, "male": 0.1, "uncertain": 0.5}[gender]
        rows.append(make_face(name, age=float(number % 80), gender=gender, p_female=p_female))
    rows[5]["doubts"] = ["blurred"]
    with open_gallery(folder / "page.html", ABOUT) as gallery:
        for row in rows:
            gallery.add(row, CROP, (600, 400))
    return folder / "page.html"


def read_labels(window):
    window.evaluate("document.getElementById('grid').scrollIntoView()")
    window.locator("#grid li").nth(5).wait_for()
    return [button.get_attribute("aria-label") for button in window.locator("#grid button").all()]


@pytest.mark.slow
def test_faces_are_filtered_sorted_and_shown_in_their_photos(window, tmp_path):
    page = write_album(tmp_path, 2999)
    window.goto(page.as_uri())
    count = window.locator("#count")
    window.get_by_text("All 2,999 faces shown").wait_for()
    # Most faces are no elements.
    assert 10 < len(read_labels(window)) < 200
    assert window.evaluate("document.documentElement.scrollWidth") == window.viewport_size["width"]

    window.locator("#sort").select_option("oldest")
    assert read_labels(window)[0].startswith("90 (20–41)")
    window.locator("#sort").select_option("youngest")
    assert read_labels(window)[0].startswith("0 (20–41)")
    window.locator("#folder").select_option(label=f"{tmp_path}/photos/sub (1,499)")
    assert count.inner_text() == "1,499 of 2,999 faces shown"
    window.get_by_label("female", exact=True).uncheck()
    window.get_by_label("uncertain", exact=True).uncheck()
    assert count.inner_text() == "500 of 2,999 faces shown"
    window.locator("#age-from").fill("79")
    assert count.inner_text() == "13 of 2,999 faces shown"
    window.locator("button[type=reset]").click()
    window.get_by_text("All 2,999 faces shown").wait_for()
    window.locator("#doubts").select_option(label="blurred (1)")
    assert count.inner_text() == "1 of 2,999 faces shown"
    window.locator("#doubts").select_option("")
    window.locator("#ages button").nth(18).click()
    assert count.inner_text() == "1 of 2,999 faces shown"
    assert window.locator("#ages button").nth(18).get_attribute("aria-pressed") == "true"
    window.locator("#ages button").nth(18).click()

    # By keyboard, from the last filter.
    window.locator("button[type=reset]").focus()
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.ariaLabel").endswith("turned #1.jpg")
    window.keyboard.press("End")
    assert window.evaluate("document.activeElement.ariaLabel").endswith("/2998.jpg")
    window.keyboard.press("Home")
    window.keyboard.press("ArrowRight")
    window.keyboard.press("Enter")
    assert "does not lie in the folder" in window.locator("#viewer-note").inner_text()
    before = len(window.requests)
    window.keyboard.press("ArrowLeft")
    box = window.locator("#stage .box")
    box.wait_for()
    # The photo is loaded only now, and nothing else ever.
    assert [url.rpartition("/")[2] for url in window.requests[before:]] == ["turned%20%231.jpg"]
    assert all(url.startswith(("data:", page.parent.as_uri())) for url in window.requests)
    place, photo = box.bounding_box(), window.locator("#stage img").bounding_box()
    assert photo["width"] / photo["height"] == pytest.approx(1.5, abs=0.01)
    left, top = place["x"] - photo["x"], place["y"] - photo["y"]
    found = [left / photo["width"], top / photo["height"], place["width"] / photo["width"]]
    assert found == pytest.approx([120 / 600, 80 / 400, 120 / 600], abs=0.02)
    window.keyboard.press("Escape")
    box.wait_for(state="detached")
    assert window.evaluate("document.activeElement.ariaLabel").endswith("turned #1.jpg")
    assert window.messages == []
