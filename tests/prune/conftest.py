"""The synthetic table, the shared ResNet-20, few images and small disks for the tests of this folder."""

from tests.disks import mounted
from tests.synthetic import quick, quick_baseline, table_file

__all__ = ["mounted", "quick", "quick_baseline", "table_file"]
