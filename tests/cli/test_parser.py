"""Arguments: what is told of a wrong one, and what the shell completes."""

import subprocess

import pytest

from mdi import __version__
from mdi.cli.commands import (
    chat,
    demo,
    launch,
    make_certs,
    mem_monitor,
    nodes,
    plot_tok_time,
    prepare_data,
    prepare_model,
    secondary,
    starter,
    train,
)
from mdi.cli.parser import Parser

COMMANDS = (
    chat,
    demo,
    launch,
    make_certs,
    mem_monitor,
    nodes,
    plot_tok_time,
    prepare_data,
    prepare_model,
    secondary,
    starter,
    train,
)
PARSERS = [module.build_parser() for module in COMMANDS]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.description)
def test_no_default_is_told_twice(parser: Parser) -> None:
    for action in parser._actions:
        entry = parser._get_formatter()._get_help_string(action) or ""  # type: ignore[attr-defined]
        assert entry.count("(default:") <= 1, entry
        assert not any(f"(default: {nothing})" in entry for nothing in (False, ())), entry


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.description)
def test_every_command_tells_its_version(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--version"])
    assert capsys.readouterr().out == f"MDI-LLM {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--promt", "x"], "unrecognized arguments: --promt x; did you mean --prompt?"),
        (["--n-sample=3", "--ntokens=3"], "unrecognized arguments: --ntokens=3; did you mean --n-tokens?"),
        (["--xyzzy"], "unrecognized arguments: --xyzzy"),
        (["3"], "unrecognized arguments: 3"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = starter.build_parser()
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments)
    assert capsys.readouterr().err == f"{parser.prog}: error: {told}\n"


def test_a_stray_index_of_a_secondary_is_told_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    parser = secondary.build_parser()
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["0"])
    told = "unrecognized arguments: 0; the index of a secondary follows the file: --nodes-config FILE INDEX"
    assert capsys.readouterr().err == f"{parser.prog}: error: {told}\n"


def test_a_repeated_flag_gives_all_its_values() -> None:
    parser = starter.build_parser()
    assert parser.parse_args([]).logit_bias == ()
    twice = ["--logit-bias", "5=-100", "--logit-bias", "7=1.5"]
    assert parser.parse_args(twice).logit_bias == ((5, -100.0), (7, 1.5))
    assert parser.parse_args([]).logit_bias == ()


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["--promp"], {"--prompt", "--prompt-style"}),
        (["--quantize", ""], {"none", "int8", "int4"}),
        (["--dtype", "b"], {"bfloat16"}),
        (["--no-str"], {"--no-stream"}),
        (["--log"], {"--log-format", "--logit-bias", "--logprobs"}),
        (["--ckpt", "a"], set()),  # left to the file names of bash itself
    ],
)
def test_bash_completes_flags_and_their_values(
    words: list[str], completions: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = starter.build_parser()
    parser.prog = "starter.py"
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--print-completion", "bash"])
    quoted = " ".join(f"'{word}'" for word in ["starter.py", *words])
    asked = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _mdi_starter_py; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-euc", capsys.readouterr().out + "COMPREPLY=()\n" + asked], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == completions


def test_zsh_takes_the_same_script_after_its_own_preparation(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = []
    for shell in ("bash", "zsh"):
        with pytest.raises(SystemExit, match="0"):
            starter.build_parser().parse_args(["--print-completion", shell])
        scripts.append(capsys.readouterr().out)
    assert scripts[1] == "autoload -Uz bashcompinit && bashcompinit\n" + scripts[0]
