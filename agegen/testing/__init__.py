"""Contract tests for plugin authors: backbones and detectors that keep them work in every command.

In a test suite of your own::

    from agegen.testing import BackboneContract

    class TestMine(BackboneContract):
        backbone = Mine
"""

from agegen.testing.backbones import BackboneContract, check_backbone
from agegen.testing.detectors import check_detector

__all__ = ["BackboneContract", "check_backbone", "check_detector"]
