"""Run a ring of processes on this machine: three samples on three nodes, or a comparison of 1, 2 and 3 nodes."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.local_ring import check_ports, command, flags_of_file, run_nodes, run_to_end, stream_as_here
from mdi.cli.parser import Parser
from mdi.cli.script import run_script
from mdi.cli.signals import Signals
from mdi.config.network import load_network
from mdi.config.paths import PROMPTS_DIR, SETTINGS_DIR
from mdi.strings import count
from mdi.terminal import screen

CONFIGS = {1: "standalone.json", 2: "configuration_2.json", 3: "configuration.json"}
GRACE_S = 30.0  # each of the processes may need its own
PROMPTS = PROMPTS_DIR / "demo_3samples.txt"


def build_parser() -> Parser:
    parser = Parser(__doc__ or "")
    parser.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help="the model's folder")
    parser.add_argument("--n-tokens", default="80", metavar="N", help="tokens per sample (default: 80)")
    parser.add_argument("--compare", action="store_true", help="run 1, 2 and 3 nodes and draw one plot")
    return parser


def main(signals: Signals) -> None:
    arguments = build_parser().parse_args()
    check_ports(load_network(SETTINGS_DIR / CONFIGS[max(CONFIGS)]), range(3))  # those of smaller rings are among them
    if not arguments.compare:
        run_ring(signals, 3, arguments.ckpt, arguments.n_tokens)
        return
    compare(signals, arguments.ckpt, arguments.n_tokens)


def compare(signals: Signals, ckpt: Path, n_tokens: str) -> None:
    """Run 1, 2 and 3 nodes and draw them into one plot, which also says where the numbers cannot be trusted."""
    from mdi.machine import n_cores  # both import psutil, which --help can do without
    from mdi.other_load import LoadMeter

    cores = n_cores()
    doubts = []
    if cores < max(CONFIGS):
        few = f"{count(cores, 'core')}: more than {count(cores, 'node')} cannot be faster here"
        doubts.append(f"this machine has {few}")
    for n_nodes in CONFIGS:
        nodes = count(n_nodes, "node")
        print(f"=== {nodes} ===", flush=True)
        meter = LoadMeter()
        run_ring(signals, n_nodes, ckpt, n_tokens, "--ignore-eos")
        others = meter.stop(cores)
        screen.write_line(f"meanwhile other programs took {others}")
        if others.is_heavy:
            doubts.append(f"other programs took {others} beside {nodes}")
    for doubt in doubts:
        screen.write_line(f"This comparison says little: {doubt}.")
    note = ("--note", f"says little: {'; '.join(doubts)}") if doubts else ()
    if status := run_to_end(command("plot_tok_time", ckpt.name, "--n-samples", "3", *note), signals):
        raise SystemExit(status)


def run_ring(signals: Signals, n_nodes: int, ckpt: Path, n_tokens: str, *options: str) -> None:
    """Run one ring to its end. A signal ends the starter, and then the secondaries."""
    starter = ["-v", "-p", "--ckpt", str(ckpt), "--n-samples", "3", "--prompt", f"FILE:{PROMPTS}"]
    starter += ["--n-tokens", n_tokens, *options, *stream_as_here()]
    status = run_nodes(signals, flags_of_file(SETTINGS_DIR / CONFIGS[n_nodes]), starter, ["-v"], range(n_nodes))
    signals.check()
    if status:
        raise SystemExit(status)


def run() -> NoReturn:
    """What `demo.py` and `mdi-demo` call."""
    run_script(main, grace_s=GRACE_S)


if __name__ == "__main__":
    run()
