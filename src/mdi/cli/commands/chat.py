"""Chat in the terminal with a server of OpenAI's API, or with a model that is served for this chat alone."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from mdi.cli.local_ring import STOP_TIMEOUT_S
from mdi.cli.parser import Parser, add_discover, options_from
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.serve_options import DEFAULT_ADDRESS, KEY_VARIABLE
from mdi.cli.signals import GRACE_S, Signals
from mdi.config.options import ChatOptions
from mdi.formats import DTYPES, KV_DTYPES, MODES

DEFAULT_URL = f"http://{DEFAULT_ADDRESS}/v1"


def build_parser() -> Parser:
    parser = Parser(f"{__doc__} /help tells what can be typed.", ChatOptions)
    option = parser.option
    option("-v", "--verb", dest="verbose", action="store_true", help="tell tokens and times, and what nodes say")
    parser.section("the server")
    option("--url", help=f"of the API (default: {DEFAULT_URL})")
    option("--api-key", metavar="KEY", help=f"the server's key (default: {KEY_VARIABLE})")
    option("--model", metavar="NAME", help="which of the server's models (default: its first)")
    parser.section("answers")
    option("--system", metavar="TEXT", help="the system prompt")
    option("--n-tokens", type=int, metavar="N", help="most tokens of an answer (default: as the context allows)")
    option("--temperature", type=float, help="0 is greedy")
    option("--top-k", type=int, metavar="K", help="sample from the k most likely tokens (default: the server's)")
    option(
        "--top-p", type=float, metavar="P", help="from the smallest set with this probability (default: the server's)"
    )
    option("--seed", type=int, help="makes answers repeat (default: other ones each time)")
    _add_own_server(parser)
    return parser


def _add_own_server(parser: Parser) -> None:
    parser.section("a server that is started for this chat, and ends with it")
    option = parser.option
    option("--ckpt", type=Path, metavar="DIR", help="the model's folder")
    option("--nodes-config", type=Path, metavar="FILE", help="the network (default: this machine alone)")
    option("--nodes", metavar="A,B:PORT", help="secondaries that run without a file, and go on afterwards")
    add_discover(parser)
    option("--device", help="cpu, mps, cuda or cuda:N", values=("cpu", "mps", "cuda"))
    option("--dtype", help="float32, float16 or bfloat16", values=DTYPES)
    option("--quantize", metavar="MODE", help="none, int8 or int4 weights", values=MODES)
    option("--kv-dtype", metavar="DTYPE", help="float32, float16 or int8 keys and values", values=KV_DTYPES)
    option("-c", "--compile", action="store_true", help="compile the stage with torch.compile")


def main(signals: Signals) -> None:
    options = options_from(ChatOptions, build_parser().parse_args())
    set_up_logging(verbose=options.verbose, quiet=False)
    signals.grace_s = GRACE_S + 2 * STOP_TIMEOUT_S
    from mdi.cli.chat.run import run_chat

    key = options.api_key or os.environ.get(KEY_VARIABLE, "").partition(",")[0] or None
    n_failed = run_chat(options, options.url or DEFAULT_URL, key, signals)
    if n_failed and not sys.stdin.isatty():
        raise SystemExit(1)  # for the script that gave the messages


def run() -> NoReturn:
    """What `chat.py` and `mdi-chat` call."""
    run_script(main)


if __name__ == "__main__":
    run()
