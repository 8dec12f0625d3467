"""A starter as a long-lived process that measures: `python -m benchmarks.ring_driver` answers JSON lines.

A request has the fields of `rings.Request`. The first answer says that all nodes are ready; a second line, whatever
it holds, starts the run; the second answer has the time of every token.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workers import answer, requests
from mdi.checkpoint.folder import open_folder
from mdi.cli.requests import samples_for
from mdi.config.network import NetworkConfig, NodeConfig, load_network
from mdi.config.options import StarterOptions
from mdi.config.section import defaults_of
from mdi.engine.sample import Outcome, Sample
from mdi.machine import peak_memory_bytes
from mdi.nodes.starter import Starter


@dataclass(frozen=True)
class RelayedNetwork(NetworkConfig):
    """A network in which each node calls the next one through a relay.

    `starter` says where the starter listens, `nodes` where its predecessor calls it.
    """

    seen: tuple[NodeConfig, ...] = ()

    @property
    def nodes(self) -> tuple[NodeConfig, ...]:
        return self.seen


def network_of(request: dict[str, Any]) -> NetworkConfig:
    network = load_network(Path(request["nodes_config"]))
    if request["seen_as"] is None:
        return network
    return RelayedNetwork(network.starter, network.secondaries, load_network(Path(request["seen_as"])).nodes)


def options_of(request: dict[str, Any]) -> StarterOptions:
    values = {
        "ckpt": Path(request["ckpt"]),
        "n_samples": request["n_samples"],
        "n_tokens": request["n_tokens"],
        "prompt": "a",  # replaced by token ids
        "prompt_style": "none",
        "dtype": request["dtype"],
        "device": request["device"],
        "split": request["split"],
        "temperature": 0.0,
        "ignore_eos": True,
        "keep_nodes": True,
    }
    if request["quantize"] != "none":
        values["quantize"] = request["quantize"]
    if "max_slots" in defaults_of(StarterOptions):  # all samples travel, however many there are
        values["max_slots"] = request["n_samples"]
    return StarterOptions(**values)


def measure(request: dict[str, Any]) -> None:
    options, network, prompt = options_of(request), network_of(request), request["prompt"]
    times: list[list[float]] = [[] for _ in range(options.n_samples)]

    def on_tokens(sample: Sample, outcome: Outcome) -> None:
        times[sample.number] += [time.monotonic()] * outcome.n_accepted

    model = open_folder(Path(request["ckpt"]), len(network.nodes))
    samples = samples_for(options.sampling, [prompt] * options.n_samples)  # the same prompt for every sample
    context = request["sequence_length"] or len(prompt) + options.n_tokens
    with Starter(network, model, options, context=context, n_slots=len(samples)) as starter:
        for sample in samples:
            sample.sink = on_tokens
            starter.add(sample)
        starter.prepare()
        answer({"ready": True})
        sys.stdin.readline()
        start = time.monotonic()
        starter.run()
    tokens = [sample.tokens for sample in samples]
    answer({"start": start, "times": times, "tokens": tokens, "peak_bytes": peak_memory_bytes()})


def main() -> None:
    answer({"ready": True})
    for request in requests():
        measure(request)


if __name__ == "__main__":
    main()
