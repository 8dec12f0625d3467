"""Measure the nodes of a network and the links between them, and say which split is the best and what it will do."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.environment import forget_foreign_variables, sleep_at_barriers
from mdi.cli.networks import describe, network_of
from mdi.cli.parser import Parser, add_allow_quantize, add_discover, add_memory_limit, options_from
from mdi.cli.script import announce, run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.options import LINKS, OBJECTIVES, PlannerOptions
from mdi.formats import BACKEND_CHOICES, DTYPES, KV_DTYPES, MODES


def build_parser() -> Parser:
    parser = Parser(__doc__ or "", PlannerOptions)
    option = parser.option
    option("-v", "--verb", dest="verbose", action="store_true", help="say what happens at each stage")
    option("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    option("--json", action="store_true", help="print the plan as JSON, for programs")
    parser.section("the model and its use")
    option("--ckpt", type=Path, metavar="DIR", help="the model's folder; with --what-if also a short name: llama3-8b")
    option("--n-samples", type=int, help="samples that are expected at once")
    option("--sequence-length", type=int, metavar="N", help="context kept per sample (default: 2048, or the model's)")
    option("--max-batch-tokens", type=int, metavar="N", help="tokens in one message")
    option("--objective", help="what is best: throughput of all samples, or latency of one", values=OBJECTIVES)
    option("--dtype", help="float32, float16 or bfloat16 (default: each device's best)", values=DTYPES)
    option("--quantize", metavar="MODE", help="none, int8 or int4 weights", values=MODES)
    add_allow_quantize(parser)
    option("--kv-dtype", metavar="DTYPE", help="float32, float16 or int8 keys and values", values=KV_DTYPES)
    parser.section("the nodes")
    option("--nodes-config", type=Path, metavar="FILE", help="the network; run this where its starter will run")
    option("--nodes", metavar="A,B:PORT", help="addresses of secondaries that run without a file; needs a key")
    add_discover(parser)
    option("--node-timeout", type=float, dest="node_timeout_s", metavar="S", help="how long to wait for a secondary")
    option("--measure", action="store_true", help="measure again what was measured before")
    option("--device", help="of the starter: cpu, mps, cuda or cuda:N (default: the best there is)")
    option("--backend", metavar="NAME", help="of the starter: native, torch or auto", values=BACKEND_CHOICES)
    add_memory_limit(parser, "may take as the starter (default: what is free)")
    option("--what-if", metavar="MACHINES", help="estimate for machines that are not here: '4x pi5-8gb,1x orin-nano'")
    option("--link", help="what joins the machines of --what-if: gigabit, 100mbit or wifi", values=LINKS)
    return parser


def main(signals: Signals) -> None:
    options = options_from(PlannerOptions, build_parser().parse_args())
    set_up_logging(verbose=options.verbose, quiet=options.quiet or options.json)
    network = None if options.what_if is not None else network_of(options)
    if network is not None:
        network.starter.access.check()
        announce(f"plan for a {describe(options, network)}")
    forget_foreign_variables()
    sleep_at_barriers()
    from mdi.cli.planning import run_plan  # after the arguments are known to be good: torch and litgpt take seconds

    with signals.raised():
        print(run_plan(options, network))


def run() -> NoReturn:
    """What `plan.py` and `mdi-plan` call."""
    run_script(main)


if __name__ == "__main__":
    run()
