"""The synthetic table, the shared ResNet-20 and few images for the tests of this folder."""

from tests.synthetic import quick, quick_baseline, table_file

__all__ = ["quick", "quick_baseline", "table_file"]
