"""For the tests of this folder: a folder of two classes."""

from tests.train.sources.folders import pictures

__all__ = ["pictures"]
