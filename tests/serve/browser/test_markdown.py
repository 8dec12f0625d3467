"""The page's Markdown: what it makes of what models write, and that none of it becomes code."""

import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="see requirements-browser.txt")

pytestmark = pytest.mark.browser

RENDER = """async (text) => {
    const { MarkdownView } = await import("/page/markdown.js");
    const body = document.createElement("div");
    new MarkdownView(body).update(text);
    return body.innerHTML;
}"""
GROW = """async (text) => {
    const { MarkdownView } = await import("/page/markdown.js");
    const body = document.createElement("div");
    const view = new MarkdownView(body);
    for (let end = 0; end <= text.length; end += 1) view.update(text.slice(0, end));
    return body.innerHTML;
}"""
NAMES = """async (text) => {
    const { MarkdownView } = await import("/page/markdown.js");
    const body = document.createElement("div");
    document.body.append(body);
    new MarkdownView(body).update(text);
    const namesOf = (node) => [node.localName, ...node.getAttributeNames(), node.getAttribute("href") ?? ""];
    return [...body.querySelectorAll("*")].flatMap(namesOf);
}"""

Rendered = Callable[[str], str]


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()


def bare(html: str) -> str:
    """Without attributes."""
    return re.sub(r"<(\w+) [^>]*>", r"<\1>", html)


CASES = {
    "plain": "<p>plain</p>",
    "two\nlines": "<p>two<br>lines</p>",
    "one\n\n\ntwo": "<p>one</p><p>two</p>",
    "**bold** *it* ~~gone~~": "<p><strong>bold</strong> <em>it</em> <del>gone</del></p>",
    "***both***": "<p><strong><em>both</em></strong></p>",
    "**bold *it* bold**": "<p><strong>bold <em>it</em> bold</strong></p>",
    "*it **bold***": "<p><em>it <strong>bold</strong></em></p>",
    "__bold__ _it_ snake_case_name 2 * 3 * 4": "<p><strong>bold</strong> <em>it</em> snake_case_name 2 * 3 * 4</p>",
    "**open": "<p>**open</p>",
    r"\*not\* \_it\_": "<p>*not* _it_</p>",
    "`a < b` ``x ` y`` `open": "<p><code>a &lt; b</code> <code>x ` y</code> `open</p>",
    "`**no**`": "<p><code>**no**</code></p>",
    "# One\n### Two\n#hash": "<h4>One</h4><h5>Two</h5><p>#hash</p>",
    "---\n***": "<hr><hr>",
    "> said\n> **so**\n\nnot": "<blockquote><p>said<br><strong>so</strong></p></blockquote><p>not</p>",
    "- a\n- b\n  - c\n\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "1. a\n   more\n2. b": "<ol><li>a<br>more</li><li>b</li></ol>",
    "1. a\n\n   ```\n   x\n     y\n   ```\n2. b": "<ol><li>a{x\n  y}</li><li>b</li></ol>",
    "text\n- a\n\nend": "<p>text</p><ul><li>a</li></ul><p>end</p>",
    "```py\na\n\n# b\n```\nafter": "{a\n\n# b}<p>after</p>",
    "```\nopen **a**": "{open **a**}",
    "~~~~\n```\n~~~~": "{```}",
    "|a|b|\n|-|-:|\n|1|`|`|\n\nend": "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
    "<tbody><tr><td>1</td><td>`</td></tr></tbody></table></div><p>end</p>",
    "a | b": "<p>a | b</p>",
    "<b>no</b> &amp;": "<p>&lt;b&gt;no&lt;/b&gt; &amp;amp;</p>",
    "see (https://a.example/x_y_z).": "<p>see (<a>https://a.example/x_y_z</a>).</p>",
    "<https://a.example>": "<p><a>https://a.example</a></p>",
    "[a **b**](https://a.example/(x) \"t\")": "<p><a>a <strong>b</strong></a></p>",
    "![picture](https://a.example/p.png)": "<p><a>picture</a></p>",
    "[x]: y [z]": "<p>[x]: y [z]</p>",
}  # fmt: skip


def without_frame(html: str) -> str:
    """Blocks of code as `{code}`."""
    return re.sub(r"<figure>.*?<pre><code>(.*?)</code></pre></figure>", r"{\1}", bare(html), flags=re.DOTALL)


def test_what_models_write(page: Any) -> None:
    found = {text: without_frame(page.evaluate(RENDER, text)) for text in CASES}
    assert found == CASES


def test_a_text_that_grows_ends_as_if_it_had_come_at_once(page: Any) -> None:
    text = "\n\n".join(CASES)
    assert page.evaluate(GROW, text) == page.evaluate(RENDER, text)


def test_links_lead_to_the_web_and_tell_it_nothing(page: Any) -> None:
    html = page.evaluate(RENDER, "[a](https://a.example/ü?x=1)")
    assert 'href="https://a.example/%C3%BC?x=1"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:msgbox(1))",
    "[x](//evil.example)",
    "[x](/v1/models)",
    "[x](file:///etc/passwd)",
    "<javascript:alert(1)>",
    '[x](https://a.example/"onmouseover="alert(1))',
    "![x](javascript:alert(1))",
    "![x](https://a.example/track.png)",
    '```"><script>alert(1)</script>\ncode\n```',
    "|<img src=x onerror=alert(1)>|\n|-|\n|<script>alert(1)</script>|",
    "<style>*{display:none}</style>",
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    "<a href=javascript:alert(1) autofocus onfocus=alert(1)>x</a>",
    "\u202e<script>alert(1)</script>",
]


TAGS = {"div", "p", "a", "span", "code", "pre", "figure", "figcaption", "button", "svg", "use"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"href", "title", "target", "rel", "class", "type", "tabindex", "role", "aria-label", "aria-hidden"}


def test_nothing_that_a_model_writes_becomes_code(page: Any) -> None:
    """Dialogs and violations of the policy fail it too: see the fixture."""
    links = []
    for attack in [*ATTACKS, "\n\n".join(ATTACKS)]:
        for name in page.evaluate(NAMES, attack):
            if ":" in name or "/" in name:
                links.append(name)
            else:
                assert name in TAGS | ATTRIBUTES | {"", "#icon-copy"}, attack
    assert links
    assert all(link.startswith("https://a.example/") for link in links), links


REPEATED = ["*", "_", "`", "~", "[", "](", "[a](", "[[a]", "**a", "*a_b", "(", "\\", "<h", "http://a"]
REPEATED += [" ", "\n", ">", "- ", "- \n", "1. ", "#", "|", "|-\n"]


def test_long_repetitions_end(page: Any) -> None:
    """The limit of a test is the deadline; quadratic steps on this would take hours."""
    for piece in REPEATED:
        text = piece * (200_000 // len(piece))
        assert page.evaluate(RENDER, text) or piece.isspace(), piece
