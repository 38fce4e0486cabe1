"""Entry points, by which other packages bring backbones, detectors and layouts; nothing is imported until asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from agegen.errors import PluginError

OWN_DISTRIBUTION = "agegen"


@dataclass(frozen=True)
class Entry:
    """One entry point: what it is called, and the distribution and version that brought it."""

    name: str
    distribution: str
    version: str
    point: EntryPoint

    @property
    def source(self) -> str:
        """The distribution and its version, as errors name them."""
        return f"{self.distribution} {self.version}"


def list_entries(group: str) -> list[Entry]:
    """Return a group's entry points by name; of one name, agegen's own come first, then by distribution."""
    found = [_describe(point) for point in entry_points(group=group)]
    return sorted(found, key=lambda entry: (entry.name, entry.distribution != OWN_DISTRIBUTION, entry.distribution))


def load_entry(kind: str, entry: Entry) -> Any:
    """Import what an entry point names.

    Raises:
        PluginError: a stranger's package raises, whatever it is; the error names the ``kind``, package and version.
    """
    try:
        return entry.point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind} '{entry.name}' of {entry.source} can't be loaded: {name_cause(error)}") from error


def name_cause(error: BaseException) -> str:
    """Return an error's kind and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _describe(point: EntryPoint) -> Entry:
    # Read once: each look at a distribution's name or version parses all of its metadata.
    metadata = point.dist.metadata if point.dist else {"Name": "unknown", "Version": "?"}
    return Entry(point.name, metadata["Name"], metadata["Version"], point)
