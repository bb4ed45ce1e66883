"""What a test may need besides the packages of ``aap-hw[dev]``: without it the test skips and says how to get it.

CI installs the packages, and there ``--no-unexpected-skips`` takes a skip for a failure unless a machine may well be
like that.
"""

from __future__ import annotations

import platform
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
ARM_LINKER = shutil.which("aarch64-linux-gnu-g++") or (platform.machine() == "aarch64" and shutil.which("g++")) or ""
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def _needs(what: object, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not what, reason=f"needs Debian's {package}: sudo apt-get install {package}")


needs_browser = _needs(CHROMIUM, "chromium")
needs_cross_compiler = _needs(ARM_LINKER, "g++-aarch64-linux-gnu")
needs_fashion_mnist = _needs(FASHION_MNIST.is_dir(), "dataset-fashion-mnist")
needs_ultralytics = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="needs ultralytics: pip install ultralytics"
)

# Reasons that no package can take away, each with what must be true of such a machine.
EXPECTED_SKIPS = {
    r"there is a GPU here": "what is said where there is none cannot be said there",
    r"this machine is of the board's kind": "it is an Arm board itself, and no other kind than one",
    r"needs an emulated board with peers": "it is downloaded, and only who counts Arm instructions needs it",
    r"the documentation site is not built": "CI builds it before the tests, and fails if it cannot",
    r"needs ultralytics": "its licence and its OpenCV, which needs a screen, are for who uses it to choose",
    r"only root can mount a small disk": "a container's root may lack the right to mount",
    r"this CPU has no AVX512-BF16": "half precision on a CPU needs instructions for it, which many lack",
    r"this CPU has no AVX-VNNI": "what is compiled for a CPU with it cannot run elsewhere",
    r"this processor always flushes denormals": "it has no mode in which it does not",
}


def is_expected(reason: str) -> bool:
    """Whether a test may skip for this reason where everything is installed."""
    return any(re.search(pattern, reason) for pattern in EXPECTED_SKIPS)
