"""A starter as a long-lived process that measures: `python -m benchmarks.ring_driver` answers JSON lines.

A request has the fields of `rings.Request`. The first answer says that all nodes are ready; a second line, whatever
it holds, starts the run; the second answer has the time of every token.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.workers import answer, requests
from mdi.cluster.plan import Job, plan_job
from mdi.config.network import NetworkConfig, NodeConfig, load_network
from mdi.config.options import StarterOptions, defaults_of
from mdi.engine.engine import Observer
from mdi.engine.sample import Sample
from mdi.model.devices import peak_memory_bytes
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


def job_of(request: dict[str, Any], options: StarterOptions, network: NetworkConfig) -> Job:
    """The job for a prompt that is given as token ids, the same for every sample."""
    job = plan_job(options, network)
    prompt = request["prompt"]
    context = request["sequence_length"] or len(prompt) + options.n_tokens
    return replace(job, prompt_ids=[prompt] * options.n_samples, context=context)


def options_of(request: dict[str, Any]) -> StarterOptions:
    values = {
        "ckpt": Path(request["ckpt"]),
        "n_samples": request["n_samples"],
        "n_tokens": request["n_tokens"],
        "prompt": "a",  # replaced by token ids
        "prompt_style": "none",
        "dtype": "float32",
        "device": "cpu",
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
    options, network = options_of(request), network_of(request)
    job = job_of(request, options, network)
    times: list[list[float]] = [[] for _ in job.prompt_ids]
    tokens: list[list[int]] = [[] for _ in job.prompt_ids]

    def on_token(sample: Sample, token: int) -> None:
        times[sample.number].append(time.monotonic())
        tokens[sample.number].append(token)

    with Starter(network, job, options) as starter:
        starter.prepare()
        answer({"ready": True})
        sys.stdin.readline()
        start = time.monotonic()
        starter.run(Observer(on_token, lambda sample: None))
    answer({"start": start, "times": times, "tokens": tokens, "peak_bytes": peak_memory_bytes()})


def main() -> None:
    answer({"ready": True})
    for request in requests():
        measure(request)


if __name__ == "__main__":
    main()
