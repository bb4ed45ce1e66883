"""The pictures of reports in docs/images, made by a headless Chromium of runs that are there.

The first run is shown by its report, all three by their comparison, which is named by their folders. Those of the
pictures are ResNet-20 with ``--data embedded``: at half of its latency in float32, as fast as that in int8 (both with
``--rounds 2``), and at 30 % with ``--precision mixed --rounds 1`` (29 November 2026, an AMD EPYC, Zen 5).

Example: python scripts/report_pictures.py runs/float32-50 runs/int8-same-time runs/mixed-30
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


def take(page: Path, name: str, *, width: int, height: int, dark: bool = False) -> None:
    """Take a picture of the upper part of a page, in as few colours as it has to the eye."""
    picture = IMAGES / f"{name}.png"
    screenshot(page, picture, dark=dark, width=width, height=height)
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
    print(picture, file=sys.stderr)


if __name__ == "__main__":
    main()
