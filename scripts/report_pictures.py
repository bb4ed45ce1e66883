"""The pictures of reports in docs/images, made by a headless Chromium of runs that are there.

The first run is shown by its report, all three by their comparison, which is named by their folders. Those of the
pictures come from ``make demo``, whose folder is renamed, and, with its table and ``--rounds 2``, from ``--budget 70%``
and from ``--budget 50% --score weight-l1``.

Example: python scripts/report_pictures.py runs/budget-50 runs/budget-70 runs/budget-50-weight-l1
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # the browser is driven as in the tests

import aap_hw
from tests.report.browser import screenshot

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        one = aap_hw.report(runs[0], out=Path(scratch) / "one.html")
        all_of_them = aap_hw.report(*runs, out=Path(scratch) / "all.html")
        take(one, "report-dark", dark=True, width=1000, height=2500)
        take(all_of_them, "comparison-light", width=1200, height=2200)
        take(all_of_them, "comparison-phone", width=500, height=1500)


def take(page: Path, name: str, *, width: int, height: int, dark: bool = False) -> None:
    """Take a picture of the upper part of a page, in as few colours as it has to the eye."""
    picture = IMAGES / f"{name}.png"
    screenshot(page, picture, dark=dark, width=width, height=height)
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
    print(picture, file=sys.stderr)


if __name__ == "__main__":
    main()
