"""The chat of the page: sending, stopping, editing, keys, errors, sizes, themes, keyboard, screen readers."""

from collections.abc import Callable
from typing import Any

import pytest

from mdi.control.status import NodeState
from mdi.engine.sample import Sample
from mdi.serve.service import Service
from support.scripts import wait_until

from ..conftest import Engine
from .conftest import OTHER_HOST, SIZES

sync_api = pytest.importorskip("playwright.sync_api", reason="see requirements-browser.txt")

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Any]
KEY = "a-secret-of-mine"
HALF = 'data: {"choices": [{"index": 0, "delta": {"content": "Hal"}, "finish_reason": null}]}\n\n'
expect = sync_api.expect
expect.set_options(timeout=60_000)


class Model:
    """Says what the test says, to one request after the other."""

    def __init__(self, engine: Engine, service: Service) -> None:
        self._engine, self._service = engine, service

    def asked(self, n: int) -> Sample:
        """The sample of the n-th request, from 1."""
        wait_until(lambda: len(self._engine.samples) >= n, 60, f"request {n} has come")
        return self._engine.samples[n - 1]

    def prompt(self, n: int) -> str:
        return self._service.model.tokenizer.decode(list(self.asked(n).prompt))

    def say(self, n: int, text: str) -> None:
        self._engine.say(self.asked(n), *self._service.model.tokenizer.encode(text))

    def end(self, n: int, reason: str = "stop") -> None:
        self._engine.end(self.asked(n), reason)

    def answer(self, n: int, text: str) -> None:
        self.say(n, text)
        self.end(n)

    def always(self, text: str) -> None:
        """Say this to every request from now on."""
        tokens = self._service.model.tokenizer.encode(text)
        self._engine.script = lambda sample: self._engine.end(sample, "stop", *tokens)


@pytest.fixture
def model(engine: Engine, service: Service) -> Model:
    return Model(engine, service)


def send(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).and_(page.get_by_role("textbox")).fill(text)
    page.keyboard.press("Enter")


def answers(page: Any) -> Any:
    return page.locator(".turn.assistant .body")


def test_an_answer_is_shown_while_it_comes(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    expect(page.get_by_role("heading", level=1)).to_contain_text("tiny")
    send(page, "Hi")
    model.say(1, "Hel")
    expect(answers(page)).to_have_text("Hel")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    model.answer(1, "lo")
    expect(answers(page)).to_have_text("Hello")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".facts").last).to_contain_text("tokens")
    assert model.prompt(1) == "<user>Hi<assistant>"


def test_escape_stops_an_answer_and_what_came_is_kept(open_page: OpenPage, model: Model, engine: Engine) -> None:
    page = open_page()
    send(page, "Hi")
    model.say(1, "Hel")
    expect(answers(page)).to_have_text("Hel")
    page.keyboard.press("Escape")
    expect(page.locator(".note:visible")).to_have_text("You stopped this answer.")
    wait_until(lambda: bool(engine.cancelled), 60, "the server cancels it")
    send(page, "Go on")
    model.answer(2, "lo")
    expect(answers(page).last).to_have_text("lo")
    assert model.prompt(2) == "<user>Hi<assistant>Hel<user>Go on<assistant>"


def test_a_message_is_edited_and_an_answer_is_asked_for_again(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    for number, (said, answer) in enumerate([("Hi", "one"), ("More", "two")], start=1):
        send(page, said)
        model.answer(number, answer)
        expect(answers(page)).to_have_count(number)
        expect(answers(page).last).to_have_text(answer)
    page.get_by_role("button", name="Retry").last.click()
    model.answer(3, "three")
    expect(answers(page)).to_have_text(["one", "three"])
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Your message").fill("Ho")
    page.keyboard.press("Enter")
    model.answer(4, "four")
    expect(answers(page)).to_have_text(["four"])
    assert model.prompt(3) == "<user>Hi<assistant>one<user>More<assistant>"
    assert model.prompt(4) == "<user>Ho<assistant>"


def test_conversation_and_settings_outlive_a_reload(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    model.always("Hello")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Top k").fill("-4")  # out of bounds: not taken
    page.get_by_label("Seed").fill("7")
    page.keyboard.press("Escape")
    send(page, "Hi")
    expect(answers(page)).to_have_text("Hello")
    page.reload()
    expect(answers(page)).to_have_text("Hello")
    send(page, "Ho")
    expect(answers(page)).to_have_count(2)
    assert model.prompt(2) == "<system>Be brief.<user>Hi<assistant>Hello<user>Ho<assistant>"
    assert (model.asked(2).params.temperature, model.asked(2).params.top_k) == (0.25, 0)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()


def test_what_came_of_an_answer_outlives_a_reload(open_page: OpenPage, model: Model, engine: Engine) -> None:
    page = open_page()
    send(page, "Hi")
    model.say(1, "Hel")
    expect(answers(page)).to_have_text("Hel")
    page.reload()
    expect(answers(page)).to_have_text("Hel")
    expect(page.locator(".turn .note:visible")).to_have_text("The page was left before the answer was complete.")
    wait_until(lambda: bool(engine.cancelled), 60, "the server cancels it")


def test_a_new_chat_ends_the_answer_of_the_old_one(open_page: OpenPage, model: Model, engine: Engine) -> None:
    page = open_page()
    send(page, "Hi")
    model.say(1, "Hel")
    expect(answers(page)).to_have_text("Hel")
    page.get_by_role("button", name="New chat").click()
    send(page, "Ho")
    model.say(2, "One")
    wait_until(lambda: bool(engine.cancelled), 60, "the server cancels it")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    model.answer(2, " two")
    expect(answers(page)).to_have_text(["One two"])
    assert model.prompt(2) == "<user>Ho<assistant>"


def test_a_server_with_keys_is_given_one(open_page: OpenPage, model: Model) -> None:
    page = open_page(KEY)
    model.always("Hello")
    send(page, "Hi")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("asks for an API key")
    for key in ("another-key", KEY):
        dialog.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        if key != KEY:
            expect(dialog).to_contain_text("does not know this API key")
    expect(answers(page)).to_have_text("Hello")
    page.reload()
    send(page, "Hi")
    expect(answers(page)).to_have_count(2)


def test_a_ring_that_recovers_is_asked_again(open_page: OpenPage, model: Model, engine: Engine) -> None:
    page = open_page()
    engine.state = NodeState.RECOVERING
    send(page, "Hi")
    status = page.locator(".facts").last
    expect(status).to_contain_text("The ring cannot answer now: the ring is recovering. Trying again in")
    engine.state = NodeState.RUNNING
    model.answer(1, "Hello")
    expect(answers(page)).to_have_text("Hello")
    expect(page.locator(".problem:visible")).to_have_count(0)


def test_errors_are_told_in_sentences(open_page: OpenPage, model: Model, service: Service) -> None:
    page = open_page()
    problem = page.locator(".turn .problem:visible")
    send(page, "word " * 300)
    expect(problem).to_contain_text("no longer fits into the model's context")
    page.get_by_role("button", name="New chat").click()
    send(page, "Hi")
    model.say(1, "Hel")
    expect(answers(page)).to_have_text("Hel")
    service.fail("secondary 0 did not come back")
    expect(problem).to_have_text("The server could not finish: secondary 0 did not come back.")


def test_a_server_that_is_gone_is_told_and_asked_again_by_hand(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    expect(page.get_by_role("heading", level=1)).to_contain_text("tiny")
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"), times=1)
    send(page, "Hi")
    expect(page.locator(".turn .problem:visible")).to_contain_text("The server does not answer.")
    model.always("Hello")
    page.get_by_role("button", name="Retry").click()
    expect(answers(page)).to_have_text("Hello")
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=HALF), times=1
    )
    send(page, "More")
    expect(answers(page).last).to_have_text("Hal")
    expect(page.locator(".turn .problem:visible")).to_have_text("The connection broke before the answer was complete.")


def test_themes(open_page: OpenPage) -> None:
    page = open_page(color_scheme="dark")
    body, dark, light = page.locator("body"), "rgb(15, 19, 24)", "rgb(245, 246, 248)"
    expect(body).to_have_css("background-color", dark)
    page.emulate_media(color_scheme="light")
    expect(body).to_have_css("background-color", light)
    for name, colour in (("light", light), ("dark", dark)):
        page.locator("#theme").click()
        expect(page.locator("#theme")).to_have_accessible_name(f"Theme: {name}")
        expect(body).to_have_css("background-color", colour)
    page.reload()
    expect(body).to_have_css("background-color", dark)
    assert page.evaluate("localStorage.getItem('mdi.theme')") == "dark"


WIDE = f"""# {"long" * 60}

```text
{"code " * 80}
```

|{"a cell|" * 30}
|{"-|" * 30}
|{"1|" * 30}

https://example.com/{"x" * 300}"""


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_page(size: str, open_page: OpenPage, model: Model) -> None:
    page = open_page(size=size)
    model.always(WIDE)
    for text in ("Hi", "word" * 100):
        send(page, text)
    expect(page.locator(".turn.assistant table").first).to_be_visible()
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_text("Nodes as a table").click()
    expect(page.locator("#ring table")).to_be_visible()
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    )  # `innerWidth` of a phone grows with it
    for part in ("#ring", ".scroller", ".turn.assistant .body"):
        assert page.locator(part).first.evaluate("part => part.scrollWidth - part.clientWidth") <= 0, part
    chat, ring = page.locator("#chat").bounding_box(), page.locator("#ring").bounding_box()
    assert (ring["y"] >= chat["y"] + chat["height"]) == (size == "phone"), "the ring is below the chat on a phone alone"


def test_the_end_stays_in_view_unless_the_reader_scrolls(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    send(page, "Hi")
    model.say(1, "line\n\n" * 60 + "last of many")
    expect(page.get_by_text("last of many")).to_be_in_viewport()
    page.locator("#turns").hover()
    page.mouse.wheel(0, -10_000)
    expect(page.locator(".turn.user")).to_be_in_viewport()
    model.answer(1, "\n\nthe very last")
    expect(answers(page)).to_contain_text("the very last")
    expect(page.locator(".turn.user")).to_be_in_viewport()


def focused(page: Any) -> str:
    """What has the focus, in words; fails where that cannot be seen."""
    name, style = page.evaluate(
        """() => {
            const node = document.activeElement;
            const name = node.getAttribute("aria-label") || node.textContent.trim() || node.id;
            return [name, getComputedStyle(node).outlineStyle];
        }"""
    )
    assert style == "solid", f"the focus on {name!r} is not to be seen"
    return str(name)


def test_all_of_it_works_by_keyboard_alone(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    model.always("A block:\n\n```python\nprint(1)\n```")
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user .body")).to_have_text("one\ntwo", use_inner_text=True)
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()
    stops = []
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        stops.append(focused(page))
        if stops[-1] == "Skip to the message field":
            break
    assert {"Retry", "Copy", "Code: python", "Edit", "Theme: system", "Settings", "New chat"} <= set(stops)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#message")).not_to_be_focused()
    for _ in range(40):
        if focused(page) == "Edit":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("Escape")
    assert focused(page) == "Edit"


def test_a_screen_reader_has_landmarks_and_hears_sentences(open_page: OpenPage, model: Model) -> None:
    page = open_page()
    for role, name in (
        ("banner", None),
        ("navigation", "Page"),
        ("main", None),
        ("region", "Chat"),
        ("region", "Ring"),
    ):
        expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)
    expect(page.get_by_role("log", name="Conversation")).to_have_attribute("aria-live", "off")
    heard = page.locator("#announcements p")
    send(page, "Hi")
    expect(heard).to_have_text(["Answering."])
    model.say(1, "**One** is said. Two is n")
    expect(answers(page)).to_contain_text("Two is n")
    expect(heard).to_have_text(["Answering.", "One is said."])
    model.answer(1, "ot yet")
    expect(heard).to_have_text(["Answering.", "One is said.", "Two is not yet", "End of the answer."])


def test_code_is_copied(open_page: OpenPage, model: Model) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    model.always("```python\nif a < b:\n    print('&')\n```")
    send(page, "Hi")
    page.locator("figure.code").get_by_role("button", name="Copy").click()
    expect(page.locator("figure.code button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "if a < b:\n    print('&')"


def test_the_page_works_over_plain_http_by_any_name_of_a_server_with_keys(open_page: OpenPage, model: Model) -> None:
    """Browsers give such a page no clipboard, among other things."""
    page = open_page(KEY, host=OTHER_HOST)
    assert not page.evaluate("isSecureContext")
    model.always("```\nsome code\n```")
    send(page, "Hi")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    page.locator("figure.code").get_by_role("button", name="Copy").click()
    expect(page.locator("figure.code button")).to_have_text("Copied")
    page.locator("#message").focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#message")).to_have_value("some code")
