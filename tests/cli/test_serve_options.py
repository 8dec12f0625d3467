"""Where a server listens, and whom it serves."""

from pathlib import Path

import pytest

from mdi.cli.commands.starter import build_parser
from mdi.cli.parser import options_from
from mdi.cli.serve_options import KEY_VARIABLE, api_keys, check_serving, serve_address
from mdi.config.options import ServeOptions, StarterOptions
from mdi.errors import ConfigError
from mdi.net.sockets import listen
from mdi.serve.api_keys import ApiKeys


def options_of(*arguments: str) -> StarterOptions:
    return options_from(StarterOptions, build_parser().parse_args(["--ckpt", "x", *arguments]))


def options(*arguments: str) -> ServeOptions:
    return options_of(*arguments).serving


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--serve"], ("127.0.0.1", 8000)),
        (["--serve", "localhost:9"], ("localhost", 9)),
        (["--serve", "8080"], ("127.0.0.1", 8080)),
        (["--serve", "[::1]:8000"], ("::1", 8000)),
    ],
)
def test_an_address(arguments: list[str], address: tuple[str, int]) -> None:
    assert serve_address(options(*arguments), has_keys=False) == address


@pytest.mark.parametrize("text", ["x", "host", "host:", "host:70000", "http://host:8000", "::1:8000", "a:b:1"])
def test_what_is_no_address_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        serve_address(ServeOptions(serve=text), has_keys=True)


def test_strangers_are_served_with_a_key_or_on_purpose() -> None:
    for address in ("0.0.0.0:8000", "192.168.1.2:8000", "[::]:8000"):
        with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} or --api-key, or --insecure"):
            serve_address(options("--serve", address), has_keys=False)
        serve_address(options("--serve", address), has_keys=True)
        serve_address(options("--serve", address, "--insecure"), has_keys=False)


def test_keys_come_from_flags_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nthird-key\n\nfourth-key\n")
    monkeypatch.setenv(KEY_VARIABLE, "fifth-key,sixth-key")
    flags = options("--api-key", "first-key", "--api-key", "second-key", "--api-key-file", str(file))
    assert list(api_keys(flags)) == ["first-key", "second-key", "third-key", "fourth-key"]
    assert list(api_keys(options())) == ["fifth-key", "sixth-key"]
    monkeypatch.delenv(KEY_VARIABLE)
    assert list(api_keys(options())) == []


def test_a_file_without_keys_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n\n")
    with pytest.raises(ConfigError, match="no key in it"):
        list(api_keys(options("--api-key-file", str(tmp_path / "keys"))))


@pytest.mark.parametrize("key", ["", "short", "with a blank", "ümlaut-key", "tab\tin-key"])
def test_keys_that_no_header_carries_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="an API key has"):
        ApiKeys([key])


@pytest.mark.parametrize(
    "flags", [["--prompt", "Hi"], ["--n-tokens", "3"], ["--output", "x"], ["--temperature", "0"], ["--plots"]]
)
def test_what_requests_tell_is_refused_on_the_command_line(flags: list[str]) -> None:
    check_serving(options_of("--serve", "--max-slots", "3", "--seed", "4"))
    with pytest.raises(ConfigError, match=f"leave out {flags[0]}"):
        check_serving(options_of("--serve", *flags))


@pytest.mark.parametrize(
    "arguments",
    [["--max-queue", "-1"], ["--drain-timeout", "-1"], ["--drain-delay", "31"], ["--max-slots", "1025", "--serve"]],
)
def test_numbers_have_bounds(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=arguments[0]):
        options(*arguments)


def test_a_port_that_is_taken_names_the_flag() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="choose another port in --serve"):
        listen("127.0.0.1", taken.getsockname()[1], "--serve")
