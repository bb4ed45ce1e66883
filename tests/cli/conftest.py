"""For the tests of this folder: the synthetic table, the shared ResNet-20, few images instead of all, and disks."""

from tests.disks import mounted
from tests.synthetic import quick, quick_baseline, table_file

__all__ = ["mounted", "quick", "quick_baseline", "table_file"]
