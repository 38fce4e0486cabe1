"""Reports in a real browser: what a page looks like in several widths, on light and dark screens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_PROBE = """() => {
    const luminance = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const section = document.querySelector("section");
    const [dark, light] = [getComputedStyle(section).color, getComputedStyle(section).backgroundColor]
        .map(luminance).sort((a, b) => a - b);
    const boxes = [...document.querySelectorAll(".scroll")];
    const wide = boxes.filter((box) => box.scrollWidth > box.clientWidth + 1);
    // After scrolling, the first column must still be at the left edge.
    const tables = wide.filter((box) => box.querySelector("table"));
    tables.forEach((box) => { box.scrollLeft = 10000; });
    const covered = tables.filter((box) =>
        box.querySelector("td").getBoundingClientRect().left > box.getBoundingClientRect().left + 1).length;
    return {
        broken: [...document.images].filter((image) => !image.naturalWidth).length,
        overflow: document.documentElement.scrollWidth - innerWidth,
        contrast: (light + 0.05) / (dark + 0.05),
        background: getComputedStyle(document.body).backgroundColor,
        wide: wide.length,
        hints: [...document.querySelectorAll(".hint")].filter((hint) => hint.offsetHeight > 0).length,
        covered,
    };
}"""


@dataclass(frozen=True)
class ShownPage:
    """A page in a window of a width, in pixels, and a colour scheme.

    Attributes:
        width: of the window.
        scheme: light or dark.
        broken: images that cannot be displayed.
        overflow: by how many pixels the whole page is wider than the window.
        contrast: of the text of a section, 1 to 21.
        background: of the page, as a CSS colour.
        wide: tables and figures that scroll inside their boxes, and ``hints`` those that say so.
        hints: see ``wide``.
        covered: scrolled tables whose first column has scrolled away.
        messages: of the console.
    """

    width: int
    scheme: str
    broken: int
    overflow: int
    contrast: float
    background: str
    wide: int
    hints: int
    covered: int
    messages: list[str] = field(default_factory=list)


@contextmanager
def launch_chromium(*options: str) -> Iterator[Any]:
    """Yield a browser of playwright; skip the test if Chromium is not installed."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking", *options]
        )
        yield browser
        browser.close()


def show_page(path: Path) -> Iterator[ShownPage]:
    """Yield a file in windows 1200 and 400 pixels wide, light and dark."""
    with launch_chromium() as browser:
        for width, scheme in product((1200, 400), ("light", "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            messages: list[str] = []
            page.on("console", lambda message, texts=messages: texts.append(message.text))
            page.on("pageerror", lambda error, texts=messages: texts.append(str(error)))
            page.goto(path.as_uri())
            yield ShownPage(width, scheme, messages=messages, **page.evaluate(_PROBE))
            page.close()
