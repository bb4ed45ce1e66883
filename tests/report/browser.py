"""A real browser without a window and without a network: what a page becomes in it, and what it complains about."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.needs import CHROMIUM

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    # No name is resolved and no host but this one is reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--proxy-server=127.0.0.1:9",
    "--enable-logging=stderr", "--virtual-time-budget=60000", "--timeout=120000",
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """The page's elements when all scripts were done, and the lines of its console."""

    dom: str
    console: list[str]


def open_page(page: Path, script: str = "", *, dark: bool = False, width: int = 1200) -> Opened:
    """Open a file, with a script of the test's added at its end."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "page.html"
        copy.write_text(page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        return open_address(copy.resolve().as_uri(), dark=dark, width=width)


def open_address(address: str, *, dark: bool = False, width: int = 1200) -> Opened:
    """Open what lies at an address of this machine."""
    done = _chromium(address, "--dump-dom", f"--window-size={width},1000", dark=dark)
    return Opened(done.stdout, re.findall(r"CONSOLE.*", done.stderr))


def screenshot(page: Path, out: Path, *, dark: bool = False, width: int = 1200, height: int = 1000) -> None:
    """Take a picture of a file."""
    _chromium(page.resolve().as_uri(), f"--screenshot={out}", f"--window-size={width},{height}", dark=dark)


def _chromium(address: str, *more: str, dark: bool) -> subprocess.CompletedProcess[str]:
    # 0 is dark, 1 is light.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    with tempfile.TemporaryDirectory() as scratch:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={scratch}/profile", scheme, *more, address]
        environment = {**os.environ, "HOME": scratch}
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180, env=environment)
