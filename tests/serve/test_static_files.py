"""The files of the page: what they are sent as, that nothing else is, and that they promise what the policy demands."""

import http.client
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mdi.serve.server import UserServer
from mdi.serve.static_files import PAGE_DIR, read_page

ServerOf = Callable[..., UserServer]
KEY = "a-secret-of-mine"


def fetch(
    server: UserServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


def policy_of(headers: http.client.HTTPMessage) -> dict[str, str]:
    directives = headers["Content-Security-Policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


def test_the_page_needs_no_key_and_runs_nothing_from_elsewhere(server_of: ServerOf) -> None:
    status, headers, content = fetch(server_of(KEY), "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert content == (PAGE_DIR / "index.html").read_bytes()
    policy = policy_of(headers)
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("base-uri") == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert {value for name, value in policy.items() if name.endswith("-src")} == {"'self'"}
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("main.js", "text/javascript"),
        ("page.css", "text/css"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_has_its_type_and_is_not_sent_twice(name: str, content_type: str, server_of: ServerOf) -> None:
    server = server_of()
    status, headers, content = fetch(server, f"/page/{name}")
    assert (status, headers["Content-Type"]) == (200, f"{content_type}; charset=utf-8")
    assert content == (PAGE_DIR / name).read_bytes()
    again, unchanged, nothing = fetch(server, f"/page/{name}", If_None_Match=headers["ETag"])
    assert (again, unchanged["ETag"], nothing) == (304, headers["ETag"], b"")
    assert fetch(server, f"/page/{name}", If_None_Match='"another"')[0] == 200
    status, headers, nothing = fetch(server, f"/page/{name}", "HEAD")
    assert (status, headers["Content-Length"], nothing) == (200, str(len(content)), b"")


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/nothing.js",
        "/page/../server.py",
        "/page/..%2Fserver.py",
        "/page/%2e%2e/server.py",
        "/page/..%5cserver.py",
        "/page//etc/passwd",
        "/page/%2Fetc%2Fpasswd",
        "/page/main.js%00.html",
        "/page/main.js/more",
        "/page/index.html",
        "/main.js",
    ],
)
def test_nothing_but_the_files_of_the_page_is_sent(path: str, server_of: ServerOf) -> None:
    status, _, content = fetch(server_of(), path)
    assert status in (400, 404)
    assert b"import" not in content


def test_the_page_takes_nothing(server_of: ServerOf) -> None:
    assert fetch(server_of(), "/", "POST", Content_Type="application/json")[0] == 405


def test_files_that_are_not_for_browsers_are_left_out(tmp_path: Path) -> None:
    for name in ("index.html", "notes.txt", "main.js~", "__init__.py"):
        (tmp_path / name).write_text(name)
    assert set(read_page(tmp_path)) == {"/"}


def test_what_the_page_names_is_there() -> None:
    """Imports of modules, files of the index, and parts of it that scripts look up."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in PAGE_DIR.iterdir()}
    named = {match for text in sources.values() for match in re.findall(r'from "\./([\w.]+)"|"/page/([\w.]+)"', text)}
    assert {first or second for first, second in named} <= set(sources)
    reached = {"index.html", *re.findall(r'"/page/([\w.]+)"', sources["index.html"])}
    while more := {name for each in reached for name in re.findall(r'from "\./([\w.]+)"', sources[each])} - reached:
        reached |= more
    assert reached == set(sources), "no file is left over"
    ids = set(re.findall(r' id="([\w-]+)"', sources["index.html"]))
    scripts = "".join(text for name, text in sources.items() if name.endswith(".js"))
    assert set(re.findall(r'(?:byId|getElementById)\("([\w-]+)"\)', scripts)) <= ids


def test_scripts_never_parse_strings_as_html_or_code() -> None:
    for path, file in read_page().items():
        if path.endswith(".js"):
            assert not re.search(
                rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", file.content
            )
    html = (PAGE_DIR / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|https?://", html)
