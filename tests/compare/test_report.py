"""The HTML report of a comparison, as text and in a browser."""

import re
import shutil
import subprocess

import pytest

from agegen.compare.compare import compare_runs
from agegen.compare.report import render_html, write_html_report
from agegen.errors import DataError
from agegen.evaluate.config import CompareConfig


@pytest.fixture(scope="module")
def comparison(trained_run, tmp_path_factory):
    copy = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(trained_run, copy)
    return compare_runs(CompareConfig((str(trained_run), str(copy))))


def test_the_report_is_self_contained_and_complete(comparison):
    html = render_html(comparison)
    sources = re.findall(r'src="([^"]{0,40})', html)
    assert len(sources) == 4 + 2 * 12  # four figures, twelve faces of each run
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r'(?:href|src)="https?:', html)
    for text in ("Table 1: age", "Table 2: gender", "Table 3: cost", comparison.verdict):
        assert text in html


def test_without_the_data_the_report_has_no_faces(comparison, monkeypatch):
    def fail(data, reading):
        raise DataError("gone")

    monkeypatch.setattr("agegen.compare.report.load_sources", fail)
    html = render_html(comparison)
    assert "largest age errors" not in html
    assert "Table 1: age" in html


def test_a_browser_shows_every_figure_without_errors(comparison, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    page = tmp_path / "report.html"
    write_html_report(page, comparison)
    # The page reports which images failed to decode, and whether it is wider than the window.
    probe = (
        "<script>addEventListener('load', () => {"
        "const bad = [...document.images].filter(image => !image.naturalWidth).length;"
        "document.title = `images=${document.images.length} bad=${bad} "
        "overflow=${document.documentElement.scrollWidth > innerWidth}`; });</script></body>"
    )
    page.write_text(page.read_text().replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [chromium, *flags, "--window-size=500,900", "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>images=28 bad=0 overflow=false</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
