"""The page of a ring of three processes: the text goes on while a node is killed and returns.

With SCREENSHOTS=<folder>, the pictures of the docs are made anew there.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.scripts import Network, Process, Scripts, WarmPython, free_ports, write_network

from .conftest import SIZES

sync_api = pytest.importorskip("playwright.sync_api", reason="see requirements-browser.txt")

pytestmark = pytest.mark.browser

KEY = "a-key-for-the-page"
QUESTION = "Show me a Python function that reverses a list, and explain it step by step."
N_TOKENS = 160
expect = sync_api.expect


@dataclass
class Served:
    """A ring that serves users; the last secondary can be killed and started again."""

    url: str
    network: Network
    scripts: Scripts
    starter: Process
    secondaries: list[Process]

    def kill(self) -> None:
        self.secondaries[1].kill()

    def start_again(self) -> None:
        options = ("--dtype", "float32", "--nodes-config", self.network.path, 1)
        self.secondaries[1] = self.scripts.start("secondary.py", "-v", *options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython, smollm2: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    with Scripts(folder / "processes", warm) as scripts:
        network = write_network(folder / "three.json", 3)
        (port,) = free_ports(1)
        secondaries = scripts.secondaries(network, "--dtype", "float32")
        starter = scripts.start(
            "starter.py", "-v", "--ckpt", smollm2, "--nodes-config", network.path, "--dtype", "float32",
            "--serve", f"127.0.0.1:{port}", "--api-key", KEY, "--sequence-length", 1024,
        )  # fmt: skip
        starter.wait_for("serving ", 300)
        yield Served(f"http://127.0.0.1:{port}/", network, scripts, starter, secondaries)


def show(page: Any, name: str) -> None:
    """A picture for the docs, where they are asked for."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.mouse.move(5, 300)  # off the buttons
        (Path(folder) / f"page-{name}.png").write_bytes(page.screenshot())


def enter(page: Any) -> None:
    """Give the key, and have the most likely tokens chosen, so that texts can be compared."""
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(3, timeout=120_000)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill(str(N_TOKENS))
    page.keyboard.press("Escape")


def ask(page: Any) -> Any:
    """The answer, which grows."""
    page.locator("#message").fill(QUESTION)
    page.keyboard.press("Enter")
    return page.locator(".turn.assistant .body").last


def finished(page: Any) -> None:
    expect(page.locator(".turn.growing")).to_have_count(0, timeout=300_000)


@pytest.mark.parametrize(("size", "scheme"), [("laptop", "light"), ("phone", "light")])
def test_the_page_on_screens(size: str, scheme: str, served: Served, open_url: Callable[..., Any]) -> None:
    page = open_url(served.url, size=size, color_scheme=scheme)
    enter(page)
    answer = ask(page)
    expect(answer.locator("figure.code")).to_be_visible(timeout=120_000)
    if size == "phone":
        page.get_by_role("link", name="Ring: ready").click()
        expect(page.locator(".drawing")).to_be_in_viewport()
    expect(answer).to_contain_text(re.compile(".{350}", re.DOTALL), timeout=120_000)
    show(page, size)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def test_a_lost_node_turns_red_and_green_while_the_text_goes_on(served: Served, open_url: Callable[..., Any]) -> None:
    """The last test of this ring, which has another process as its second secondary from here on, and then none."""
    page = open_url(served.url, color_scheme="dark")
    enter(page)
    answer = ask(page)
    expect(page.locator(".messages circle").first).to_be_attached(timeout=120_000)
    expect(page.locator(".samples li")).to_contain_text(f"of {N_TOKENS} tokens", timeout=120_000)
    finished(page)
    undisturbed = answer.inner_text()
    page.get_by_role("button", name="New chat").click()

    answer = ask(page)
    expect(answer).to_contain_text(re.compile(".{200}", re.DOTALL), timeout=120_000)
    served.kill()
    card = page.locator(".card").nth(2)
    expect(card).to_have_class("card lost", timeout=120_000)
    expect(card).to_contain_text(re.compile("lost [2-9].* ago"), timeout=120_000)
    expect(page.locator("#ring > header .ring-state")).to_contain_text("recovering")
    show(page, "lost-node")
    served.start_again()
    expect(card).to_have_class("card running", timeout=300_000)
    expect(page.locator("#announcements")).to_contain_text("secondary 1 of the ring is back.")
    finished(page)
    assert answer.inner_text() == undisturbed
    expect(page.locator("#ring")).to_contain_text("recovered once")

    served.starter.send_signal(signal.SIGTERM)
    assert served.starter.result(120).code == 0
    for secondary in served.secondaries:
        assert secondary.result(60).code == 0
