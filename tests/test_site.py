"""What a reader of the documentation site sees: found pages, pictures. Looked at where ``make docs`` has built it."""

from __future__ import annotations

import html
import json
import re
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.needs import needs_browser
from tests.report.browser import open_address

SITE = Path(__file__).parent.parent / "build" / "site"
pytestmark = [
    needs_browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the documentation site is not built: make docs"),
]
# What is typed, and the page that the first result must lead to.
FOUND = {
    "budget": "policies.html",
    "raspberry": "raspberry-pi.html",
    "mixed precision": "precision.html",
    "aap-hw doctor": "commands/doctor.html",
    "--allow-estimated": "estimated.html",
    "LatencyTable": "reference/results.html",
}
# Types as a reader does, and writes down where the results lead. The browser's clock stands still only while the server
# lets it wait, and the search is another thread of it.
TYPES = """
const box = document.querySelector(".md-search__input");
const links = () => [...document.querySelectorAll(".md-search-result__item a")].map(found => found.href);
async function typed(words, answered) {
  box.value = words;
  for (const name of ["input", "keyup"]) box.dispatchEvent(new Event(name, { bubbles: true }));
  for (let times = 0; times < 100 && !answered(); times++) await fetch("/wait");
}
addEventListener("load", async () => {
  const answers = {};
  box.focus();
  for (const words of WORDS) {
    await typed("", () => links().length == 0);
    await typed(words, () => links().length > 0);
    answers[words] = links();
  }
  const pictures = {};
  for (const theme of ["default", "slate"]) {
    document.body.setAttribute("data-md-color-scheme", theme);
    const shown = [...document.querySelectorAll("article img")].filter(each => each.checkVisibility());
    pictures[theme] = shown.map(each => new URL(each.currentSrc).pathname);
  }
  document.body.insertAdjacentHTML("beforeend", "<pre id=seen></pre>");
  document.getElementById("seen").textContent = JSON.stringify({ answers, pictures });
});
"""
WAIT_S = 0.1


class Served(SimpleHTTPRequestHandler):
    """The site, with the script at the end of its first page, and an address that takes its time."""

    def do_GET(self) -> None:
        if self.path not in ("/", "/wait"):
            return super().do_GET()
        if self.path == "/wait":
            time.sleep(WAIT_S)
        script = f"<script>const WORDS = {json.dumps(list(FOUND))};{TYPES}</script></body>"
        page = (SITE / "index.html").read_text("utf-8").replace("</body>", script).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page)
        return None

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What a browser writes down about the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=SITE)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        opened = open_address(address)
        server.shutdown()
    assert opened.console == []
    written = re.search(r'<pre id="seen">(.*?)</pre>', opened.dom)
    assert written is not None, opened.dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(written[1]).replace(address, ""))
    return found


def test_search_leads_first_to_the_page_that_answers(seen: dict[str, Any]) -> None:
    answers = seen["answers"].items()
    assert {words: re.sub(r"[?#].*", "", found[0]) if found else "" for words, found in answers} == FOUND


def test_picture_is_that_of_the_theme(seen: dict[str, Any]) -> None:
    assert seen["pictures"] == {
        "default": ["/images/overview-light.svg"],
        "slate": ["/images/overview-dark.svg"],
    }
