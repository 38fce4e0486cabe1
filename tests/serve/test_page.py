"""The web page in a real browser: it shows the values that `predict` returns, and its console stays empty."""

import json

import numpy as np
import pytest
from browsing import CHROMIUM, launch_chromium
from composing import draw_background, paste_face
from PIL import Image
from running import run_service

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def service():
    with run_service("--model", "compact", "--model", "scratch") as service:
        yield service


@pytest.fixture(scope="module")
def chromium(portrait, tmp_path_factory):
    """A browser whose webcam shows the portrait."""
    film = tmp_path_factory.mktemp("film") / "webcam.mjpeg"
    with Image.open(portrait) as image:
        image.convert("RGB").resize((512, 600)).save(film, "JPEG", quality=90)
    film.write_bytes(film.read_bytes() * 5)
    options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with launch_chromium(*options, f"--use-file-for-fake-video-capture={film}") as browser:
        yield browser


@pytest.fixture(params=[(1200, "light"), (400, "dark")], ids=["wide", "narrow"])
def page(chromium, request):
    width, scheme = request.param
    page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(20_000)
    page.messages = []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    yield page
    page.close()


def predict(agegen, path, model):
    return json.loads(agegen("predict", path, "--model", model, "--json", "-").stdout)


def expect_cells(row):
    interval = f"{js_round(row['age_low'])}–{js_round(row['age_high'])}"
    return [str(row["face"]), f"{row['age']:.1f}", interval, row["gender"], f"{row['p_female']:.2f}"]


def js_round(number):
    return int(number + 0.5)


def read_cells(figure):
    return [[cell.inner_text() for cell in row.locator("td").all()] for row in figure.locator("tbody tr").all()]


@pytest.mark.slow
def test_two_models_side_by_side(page, service, agegen, portrait, tmp_path):
    # As phones store photos: on the side, with an EXIF orientation.
    turned = tmp_path / "turned.jpg"
    with Image.open(portrait) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").rotate(90, expand=True).save(turned, exif=exif, quality=95)
    page.goto(service.address)
    page.locator("#second").select_option("scratch")
    page.locator("#files").set_input_files([portrait, turned])
    page.get_by_text("2 faces in 2 images.").wait_for()
    articles = page.locator("#results article").all()
    # The newest result comes first.
    for article, path in zip(articles, (turned, portrait), strict=True):
        assert article.locator("h2").inner_text() == path.name
        for figure, model in zip(article.locator("figure").all(), ("compact", "scratch"), strict=True):
            rows = predict(agegen, path, model)
            assert read_cells(figure) == [expect_cells(row) for row in rows]
            assert figure.locator("figcaption").inner_text() == rows[0]["model"]
            check_box(figure, rows[0])
    width = page.viewport_size["width"]
    assert page.locator("html").evaluate("root => root.scrollWidth") == width
    assert page.messages == []


def check_box(figure, row):
    """The box is where the row says, and its label has age, interval and gender."""
    image, box = figure.locator("img").bounding_box(), figure.locator(".box").bounding_box()
    across, down = figure.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    left, top, right, bottom = row["box"]
    assert box["x"] - image["x"] == pytest.approx(left / across * image["width"], abs=1.5)
    assert box["y"] - image["y"] == pytest.approx(top / down * image["height"], abs=1.5)
    assert box["width"] == pytest.approx((right - left) / across * image["width"], abs=1.5)
    assert box["height"] == pytest.approx((bottom - top) / down * image["height"], abs=1.5)
    face, age, interval, gender, _ = expect_cells(row)
    assert face == "1"
    assert figure.locator(".box").inner_text() == f"{age} ({interval}) {gender}"


def test_images_without_a_face_and_files_that_are_not_images(page, service, tmp_path):
    empty, text, table = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "table.csv"
    Image.new("RGB", (300, 200), "navy").save(empty)
    text.write_text("not an image")
    table.write_text("path,age\na.jpg,3\n")
    page.goto(service.address)
    page.locator("#model option").first.wait_for(state="attached")
    page.locator("#files").set_input_files([empty, text, table])
    page.get_by_text("0 faces in 1 image. 2 files could not be read.").wait_for()
    articles = page.locator("#results article")
    assert articles.nth(2).locator("tbody").inner_text() == "no face found"
    assert articles.nth(1).inner_text().startswith("text.png")
    assert "not a readable image" in articles.nth(1).inner_text()
    assert articles.nth(0).inner_text().startswith("table.csv")
    assert "not an image (text/csv)" in articles.nth(0).inner_text()
    assert articles.nth(0).locator("table").count() == 0
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#results article").count() == 0


@pytest.fixture(scope="module")
def crowd(portrait, tmp_path_factory):
    """A photo of two rows of faces; the second face of the upper row is lower than the first."""
    crop = np.asarray(Image.open(portrait).convert("RGB").crop((80, 40, 440, 400)))
    image = draw_background(1200, 700, np.random.default_rng(0))
    for x, y in ((150, 150), (450, 190), (750, 150), (1050, 190), (300, 520), (600, 490), (900, 520)):
        paste_face(image, crop, (x, y), 240)
    path = tmp_path_factory.mktemp("crowd") / "crowd.png"
    Image.fromarray(image).save(path)
    return path


@pytest.mark.slow
def test_labels_of_a_group_are_apart_and_numbered_by_rows(page, service, agegen, crowd):
    page.goto(service.address)
    page.locator("#model option").first.wait_for(state="attached")
    page.locator("#files").set_input_files(crowd)
    page.get_by_text("7 faces in 1 image.").wait_for()
    labels, boxes = (
        [item.bounding_box() for item in page.locator(f"#results {name}").all()] for name in (".box span", ".box")
    )
    for index, label in enumerate(labels):
        others = [*labels[:index], *(box for place, box in enumerate(boxes) if place != index)]
        assert not any(overlap(label, other) for other in others)
    numbers = [label.inner_text().split(":")[0] for label in page.locator("#results .box span").all()]
    assert numbers == list("1234567")
    centers = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
    assert centers[:4] == sorted(centers[:4])
    assert centers[4:] == sorted(centers[4:])
    assert max(y for _, y in centers[:4]) < min(y for _, y in centers[4:])
    assert [row["face"] for row in predict(agegen, crowd, "compact")] == [1, 2, 3, 4, 5, 6, 7]
    assert page.locator("html").evaluate("root => root.scrollWidth") == page.viewport_size["width"]
    assert page.messages == []


def overlap(first, second):
    """Return whether two boxes share more than a rounded pixel."""
    return all(
        min(first[start] + first[side], second[start] + second[side]) - max(first[start], second[start]) > 1
        for start, side in (("x", "width"), ("y", "height"))
    )


def press_for_files(page):
    """Press Enter until the file chooser opens: a busy browser may not recognize the key as a user gesture."""
    from playwright.sync_api import TimeoutError

    for _ in range(4):
        try:
            with page.expect_file_chooser(timeout=5_000) as chosen:
                page.keyboard.press("Enter")
            return chosen.value
        except TimeoutError:
            page.bring_to_front()
    raise AssertionError("the file chooser did not open")


def read_focus(page):
    return page.locator("body").evaluate("() => document.activeElement.id")


@pytest.mark.slow
def test_by_keyboard_and_by_paste(page, service, portrait):
    page.goto(service.address)
    page.locator("#model option").first.wait_for(state="attached")
    page.bring_to_front()
    page.keyboard.press("Tab")
    assert read_focus(page) == "choose"
    press_for_files(page).set_files(portrait)
    page.get_by_text("1 face in 1 image.").wait_for()
    # The dialog took the focus and returns it with a delay.
    page.locator("#choose").focus()
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(read_focus(page))
    assert names == ["webcam", "model", "second", "clear"]
    content = list(portrait.read_bytes())
    page.locator("body").evaluate(
        """(body, content) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "pasted.jpg", { type: "image/jpeg" }));
            window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        content,
    )
    page.locator("#results article h2", has_text="pasted.jpg").wait_for()
    page.get_by_text("1 face in 1 image.").wait_for()
    assert page.locator("#results .box").count() == 2
    assert page.messages == []


def test_the_webcam(page, service):
    page.goto(service.address)
    page.locator("#second").select_option("scratch")
    page.get_by_role("button", name="Use the webcam").click()
    page.locator("#live .box").nth(1).wait_for()
    assert page.locator("#live video").count() == 2
    ages = [float(row[0][1]) for row in map(read_cells, page.locator("#live figure").all())]
    assert all(60 < age < 100 for age in ages)
    page.get_by_role("button", name="Stop the webcam").click()
    assert page.locator("#live video").count() == 0
    assert page.messages == []


def test_the_page_asks_for_the_token(page, portrait):
    with run_service("--model", "compact", AGEGEN_TOKEN="sesame") as service:
        page.goto(service.address)
        page.get_by_text("missing or invalid token").wait_for()
        page.get_by_label("Token").fill("sesame")
        page.keyboard.press("Tab")
        page.locator("#model option").first.wait_for(state="attached")
        page.locator("#files").set_input_files(portrait)
        page.get_by_text("1 face in 1 image.").wait_for()


def test_the_content_security_policy(page, service):
    """The page only sends requests to its own server, and runs no script but its own."""
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    response = page.goto(service.address)
    page.locator("#model option").first.wait_for(state="attached")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.locator("body").evaluate("body => { body.innerHTML += '<img src=x onerror=\"document.title = 1\">'; }")
    page.wait_for_timeout(200)
    assert page.title() == "agegen"
    assert all(url.startswith((service.address, "data:")) for url in requested)
