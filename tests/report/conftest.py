"""The shared ResNet-20 for the tests of this folder."""

from tests.synthetic import quick_baseline

__all__ = ["quick_baseline"]
