"""Run the head of the ring: generate samples with a model spread over the nodes of a network file."""

from argparse import ArgumentTypeError, BooleanOptionalAction
from pathlib import Path
from typing import NoReturn

from mdi.cli.environment import forget_foreign_variables, sleep_at_barriers, warn_of_loopback_name
from mdi.cli.networks import describe, network_of
from mdi.cli.output_files import check_output_files
from mdi.cli.parser import Parser, Repeated, add_allow_quantize, add_discover, add_node_options, options_from
from mdi.cli.script import announce, run_script, set_up_logging
from mdi.cli.serve_options import DEFAULT_ADDRESS, api_keys, check_serving, serve_address
from mdi.cli.signals import Signals
from mdi.config.options import SampleOptions, StarterOptions
from mdi.serve.api_keys import ApiKeys
from mdi.strings import quoted
from mdi.text.worker_process import TextWorker


def build_parser(options: type[StarterOptions] = StarterOptions) -> Parser:
    where = "on this machine alone" if issubclass(options, SampleOptions) else "spread over several nodes"
    parser = Parser(f"Generate samples with a model {where}.", options)
    add_node_options(parser)
    _add_samples(parser)
    _add_ring(parser)
    _add_outputs(parser)
    if options is StarterOptions:
        _add_serving(parser)
    return parser


def _add_samples(parser: Parser) -> None:
    parser.section("samples")
    option = parser.option
    option("--prompt", help="one prompt for all samples, or FILE:path with one paragraph for each")
    option("--prompt-style", metavar="NAME", help="none, chat-template, or a style of litgpt (default: the model's)")
    option("--n-samples", type=int, help="number of samples")
    option("--n-tokens", type=int, help="most tokens generated per sample")
    option(
        "--sequence-length",
        "--context-length",
        "--block-size",
        type=int,
        metavar="N",
        help="context kept per sample (default: what the run needs)",
    )
    option("--temperature", type=float, help="0 is greedy")
    option("--top-k", type=int, help="sample from the k most likely tokens; 0: from all")
    option("--top-p", type=float, help="sample from the smallest set of tokens that reaches this probability")
    option("--min-p", type=float, metavar="P", help="drop tokens less than P times as likely as the most likely one")
    option("--ignore-eos", action="store_true", help="generate --n-tokens tokens whatever they are")
    _add_adjustments(parser)


def _add_adjustments(parser: Parser) -> None:
    option = parser.option
    option("--frequency-penalty", type=float, metavar="X", help="-2 to 2; positive: against a token per occurrence")
    option("--presence-penalty", type=float, metavar="X", help="-2 to 2; positive: against a token that occurred")
    option("--repetition-penalty", type=float, metavar="X", help="above 1: against tokens of prompt and text")
    option(
        "--logit-bias",
        action=Repeated,
        type=_biased_token,
        metavar="ID=VALUE",
        help="add -100 to 100 to the logit of a token; may be repeated",
    )


def _biased_token(text: str) -> tuple[int, float]:
    """`ID=VALUE`."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as exc:
        raise ArgumentTypeError(f"{quoted(text)} is not ID=VALUE, such as 2=-100") from exc


def _add_ring(parser: Parser) -> None:
    parser.section("the ring")
    option = parser.option
    option("--nodes-config", type=Path, metavar="FILE", help="the network")
    option("--nodes", metavar="A,B:PORT", help="addresses of secondaries that run without a file; needs a key")
    add_discover(parser)
    option("--save-nodes", type=Path, metavar="FILE", help="write the network, for --nodes-config next time")
    option("--port", type=int, metavar="N", help="where it answers HTTP, without a file; 0: any free port")
    option("--ring-port", type=int, metavar="N", help="where its predecessor connects to; 0: any free port")
    option(
        "--split",
        metavar="SPLIT",
        help="auto, table, measured (time all nodes first), or layers per node such as 6,8,8",
        values=("auto", "table", "measured"),
    )
    add_allow_quantize(parser, "; needs --split measured")
    option(
        "--rebalance",
        action="store_true",
        help="form the ring anew where nodes have become slower and another split is better; needs --split measured",
    )
    option("--max-slots", type=int, metavar="N", help="samples in the ring at once (default: as memory allows)")
    option(
        "--max-batch-tokens",
        "--prefill-rows",
        type=int,
        metavar="N",
        help="tokens in one message; a longer prompt goes in pieces",
    )
    option("--peer-timeout", type=float, dest="peer_timeout_s", metavar="S", help="a node silent for so long is lost")
    option("--node-timeout", type=float, dest="node_timeout_s", metavar="S", help="how long to wait for a secondary")
    option("--keep-nodes", action="store_true", help="leave the secondaries waiting for the next run")


def _add_outputs(parser: Parser) -> None:
    parser.section("what is shown and written")
    option = parser.option
    option("--stream", action=BooleanOptionalAction, help="show the first sample as it grows (default: on a terminal)")
    option("--output", type=Path, metavar="FILE", help="write one JSON object per sample, and a summary")
    option("--logprobs", type=int, metavar="N", help="with the log probabilities of each token and the N most likely")
    option("--time-run", type=Path, metavar="FILE", help="append the run's statistics to this CSV file")
    option("-p", "--plots", action="store_true", help="write a CSV and a plot of the tokens over time")
    option("--timeline", type=Path, metavar="FILE", help="write what every node did when, for a trace viewer")


def _add_serving(parser: Parser) -> None:
    parser.section("serving users")
    option = parser.option
    option(
        "--serve",
        nargs="?",
        const=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"keep the ring up and serve OpenAI's API (default: {DEFAULT_ADDRESS})",
    )
    option("--api-key", action=Repeated, metavar="KEY", help="what clients must present (default: MDI_API_KEY)")
    option("--api-key-file", type=Path, metavar="FILE", help="a file with a key in each line")
    option("--insecure", action="store_true", help="serve other machines without a key")
    option("--cors", action=Repeated, metavar="ORIGIN", help="a web site whose pages may use the server")
    option("--max-queue", type=int, metavar="N", help="requests that may wait; more are refused")
    option("--drain-timeout", type=float, dest="drain_timeout_s", metavar="S", help="for answers at the end")
    option("--drain-delay", type=float, dest="drain_delay_s", metavar="S", help="refuse requests for so long at least")


def main(signals: Signals, kind: type[StarterOptions] = StarterOptions) -> None:
    options = options_from(kind, build_parser(kind).parse_args())
    debug_log = "logs_starter.log" if options.debug else None
    as_json = options.log_format == "json"
    set_up_logging(verbose=options.verbose, quiet=options.quiet, as_json=as_json, debug_log=debug_log)
    network = network_of(options)
    network.starter.access.check()
    check_output_files(options.outputs)
    keys, address = ApiKeys(()), None
    if options.serve is not None:
        check_serving(options)
        keys = ApiKeys(api_keys(options.serving))
        address = serve_address(options.serving, has_keys=bool(keys))
    announce(describe(options, network))
    if network.secondaries:
        warn_of_loopback_name(network.starter)
    forget_foreign_variables()
    sleep_at_barriers()
    with TextWorker() as worker:  # imports its libraries while this process imports others
        # After the arguments are known to be good: torch and litgpt take seconds.
        from mdi.cli.run import run_starter
        from mdi.cli.serving import run_server

        with signals.raised():
            if address is None:
                run_starter(options, network, signals, worker)
            else:
                run_server(options, network, signals, worker, address, keys)


def run() -> NoReturn:
    """What `starter.py` and `mdi-starter` call."""
    run_script(main)


if __name__ == "__main__":
    run()
