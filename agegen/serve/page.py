"""The page at ``/``: one file, with a policy that lets it run its own script and style and ask its own server alone."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def load_page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy, which names script and style by their SHA-256."""
    page = files("agegen.serve").joinpath("page.html").read_text(encoding="utf-8")
    scripts = " ".join(_name_source(text) for text in _SCRIPT.findall(page))
    styles = " ".join(_name_source(text) for text in _STYLE.findall(page))
    policy = {
        "default-src": "'none'",
        "script-src": scripts,
        "style-src": styles,
        # Pictures that were chosen are shown from the browser's own memory.
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page, "; ".join(f"{name} {value}" for name, value in policy.items())


def _name_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
