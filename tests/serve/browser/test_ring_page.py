"""The ring on the page, as the server tells of it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import SIZES, Ring
from .ring_snapshots import SHARES, node, sample, snapshot, without_secondary_0

sync_api = pytest.importorskip("playwright.sync_api", reason="see requirements-browser.txt")

pytestmark = pytest.mark.browser

expect = sync_api.expect


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()


def test_each_node_is_told_in_words_and_drawn(page: Any) -> None:
    card = page.locator(".card").nth(1)
    for text in (
        "secondary 0", "running", "layers 10–19 · cpu · float32", "192.168.1.21:8088", "41.2 tokens/s",
        "0 messages queued", "1.0 GB, 3.0 GB free", "60% compute, 10% transfer",
    ):  # fmt: skip
        expect(card).to_contain_text(text)
    expect(card).not_to_contain_text("as slow as measured")
    expect(page.locator(".card").nth(2)).to_contain_text("10% transfer, 1.4 times as slow as measured")
    expect(page.locator('[data-ring="facts"]')).to_contain_text("predicted 43.9, reached 41.0 tokens/s")
    expect(page.locator(".drawing .node")).to_have_count(3)
    expect(page.locator(".drawing .centre")).to_contain_text("41.2")
    expect(page.get_by_role("img", name="Ring of 3 nodes")).to_have_accessible_name(
        "Ring of 3 nodes, ready, 41.2 tokens per second: starter is running, layers 0–9; "
        "secondary 0 is running, layers 10–19; secondary 1 is running, layers 20–29."
    )
    page.get_by_text("Nodes as a table").click()
    row = page.get_by_role("row", name="secondary 0")
    assert row.get_by_role("cell").all_text_contents() == [
        "running", "10–19", "cpu", "1.0 GB", "41.2", "60%", "10%", "30%", "0",
    ]  # fmt: skip


def test_a_node_that_is_lost_turns_red_and_green_again(page: Any, ring: Ring) -> None:
    disc, card = page.locator(".drawing .node").nth(1), page.locator(".card").nth(1)
    expect(card).to_have_class("card running")
    ring.snapshot = without_secondary_0(3.2)
    expect(card).to_have_class("card lost")
    expect(card).to_contain_text("lost 3.2 s ago")
    expect(card).to_contain_text("memory not known")
    expect(disc).to_contain_text("lost")
    expect(page.locator("#ring > header .ring-state")).to_have_text("recovering for 3.2 s")
    expect(page.locator(".links .broken")).to_have_count(2)
    expect(page.locator(".messages circle")).to_have_count(0)
    expect(page.locator("#announcements p").last).to_have_text("secondary 0 of the ring is lost.")
    ring.snapshot = snapshot(state="recovering", nodes=[node(0), node(1, state="loading"), node(2)])
    expect(card).to_have_class("card waiting")
    ring.snapshot = snapshot(recoveries=1)
    expect(card).to_have_class("card running")
    expect(page.locator(".links .broken")).to_have_count(0)
    expect(page.locator("#announcements p").last).to_have_text("secondary 0 of the ring is back.")
    expect(page.locator("#ring")).to_contain_text("recovered once")


def test_a_ring_that_goes_on_without_a_node_says_so(page: Any, ring: Ring) -> None:
    lost = node(1, rank=None, layers=None, state="missing", missing_s=72.4)
    ring.snapshot = snapshot(nodes=[node(0), node(2, rank=1), lost])
    pill, card = page.locator("#ring > header .ring-state"), page.locator(".card").last
    expect(pill).to_have_text("ready, 1 node left out")
    expect(card).to_contain_text("secondary 0")
    expect(card).to_contain_text("lost 72 s ago")
    expect(page.locator(".links .broken")).to_have_count(0)
    expect(page.locator(".links .bypass")).to_have_count(2)
    ring.snapshot = snapshot(nodes=[node(0), node(2, rank=1), lost | {"state": "idle", "missing_s": None}])
    expect(card).to_contain_text("idle, left out")


def test_messages_move_unless_motion_is_unwanted(page: Any, ring: Ring) -> None:
    dot = page.locator(".messages circle")
    expect(dot).to_have_count(1)
    place = dot.get_attribute("cx")
    expect(dot).not_to_have_attribute("cx", place)
    page.emulate_media(reduced_motion="reduce")
    ring.snapshot = snapshot(messages=[{"rows": 9, "prompt_rows": 9, "age_s": 10.0, "expected_s": 40.0}])
    expect(dot).to_have_class("prompt")
    places = {(dot.get_attribute("cx"), dot.get_attribute("cy")) for _ in range(20)}
    assert len(places) == 1
    centre = page.locator(".drawing .centre").bounding_box()
    assert dot.bounding_box()["x"] > centre["x"] + centre["width"], "a quarter of the way round"


def test_requests_have_their_progress(page: Any, ring: Ring) -> None:
    rows = page.locator(".samples li")
    expect(rows).to_have_text(["Answers25 of 100 tokens · prompt of 20, 12 reused · 1.2 s"])
    assert rows.get_by_role("progressbar").evaluate("bar => bar.value / bar.max") == 0.25
    waiting = sample(id="chatcmpl-2", slot=None, phase="waiting", n_cached=0, n_generated=0, seconds=0.2)
    ring.snapshot = snapshot(samples=[waiting])
    expect(rows).to_have_text(["Waits for a slot0 of 100 tokens · prompt of 20 · 0.2 s"])
    ring.snapshot = snapshot(samples=[])
    expect(page.get_by_text("None at the moment.")).to_be_visible()


def test_what_is_not_known_is_not_shown_as_a_number(page: Any, ring: Ring) -> None:
    unknown = dict.fromkeys(("layers", "dtype", "weights", "free_memory_bytes", *SHARES))
    ring.snapshot = snapshot(nodes=[node(0, state="loading", **unknown)], n_layers=1, messages=[])
    card = page.locator(".card")
    expect(card).to_have_count(1)
    expect(card).to_contain_text("no layers · cpu")
    expect(card).to_contain_text("time not known")
    expect(card).to_contain_text("peak 2.0 GB")
    assert "null" not in page.locator("#ring").inner_text() and "NaN" not in page.locator("#ring").inner_html()


@pytest.mark.parametrize("size", SIZES)
def test_nodes_of_the_drawing_overlap_neither_each_other_nor_its_edge(
    size: str, open_page: Callable[..., Any], ring: Ring
) -> None:
    page = open_page(size=size)
    for n in (1, 2, 3, 5, 8, 16):
        ring.snapshot = snapshot(nodes=[node(i) for i in range(n)])
        discs = page.locator(".drawing .disc")
        expect(discs).to_have_count(n)
        check_places([disc.bounding_box() for disc in discs.all()], page.locator(".drawing").bounding_box())


def check_places(boxes: list[dict[str, float]], frame: dict[str, float]) -> None:
    for box in boxes:
        assert frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"]
        assert frame["y"] <= box["y"] and box["y"] + box["height"] <= frame["y"] + frame["height"]
    for one, other in itertools.combinations(boxes, 2):
        assert math.hypot(one["x"] - other["x"], one["y"] - other["y"]) > one["width"]


def test_a_server_that_says_nothing_of_the_ring_is_asked_again(page: Any, ring: Ring) -> None:
    expect(page.locator(".card")).to_have_count(3)
    ring.is_silent = True
    problem = page.locator("#ring .problem")
    expect(problem).to_contain_text("The server does not answer.")
    expect(page.locator("#ring")).to_have_class("stale")
    ring.is_silent = False
    expect(problem).to_be_hidden()
