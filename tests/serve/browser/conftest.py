"""The page in headless Chromium: served by the real server, its ring told by the test."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mdi.serve.server import UserServer

from .ring_snapshots import snapshot

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"phone": (390, 844), "laptop": (1280, 800), "wide": (1920, 1080)}
RING_EVENTS = "**/ring/events"
OTHER_HOST = "ring.example"  # a name of this machine that only the browser knows

# What the page must never do is collected from its first line on.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
    violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or name it in CHROMIUM")
    flags = [f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # its sandbox is not for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@dataclass
class Ring:
    """What the page is told of the ring; the newest snapshot goes to whoever asks."""

    snapshot: dict[str, Any] = field(default_factory=snapshot)
    is_silent: bool = False

    def answer(self, route: Any) -> None:
        """One event. The page asks again when a stream ends."""
        if self.is_silent:
            route.abort()
            return
        body = f"event: ring\ndata: {json.dumps(self.snapshot)}\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)


@pytest.fixture
def ring() -> Ring:
    return Ring()


@pytest.fixture
def open_url(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page. At the end of the test, none has violated its policy or failed."""
    contexts, pages, failures = [], [], []

    def opened(url: str, size: str = "laptop", ring: Ring | None = None, **options: Any) -> Any:
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, has_touch=size == "phone", is_mobile=size == "phone", **options
        )
        contexts.append(context)
        context.add_init_script(_WATCH)
        if ring is not None:
            context.route(RING_EVENTS, ring.answer)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(f"{error.name}: {error.message}"))
        page.on("dialog", lambda dialog: (failures.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        pages.append(page)
        return page

    yield opened
    violations = [violation for page in pages for violation in page.evaluate("window.violations")]
    for context in contexts:
        context.close()
    assert (violations, failures) == ([], [])


@pytest.fixture
def open_page(server_of: Callable[..., UserServer], open_url: Callable[..., Any], ring: Ring) -> Callable[..., Any]:
    """Opens the page of a server with some keys, which tells of `ring`."""

    def opened(*keys: str, host: str = "127.0.0.1", **options: Any) -> Any:
        return open_url(f"http://{host}:{server_of(*keys).port}/", ring=ring, **options)

    return opened
