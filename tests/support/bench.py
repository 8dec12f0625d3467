"""A ring of this process with a relay in every link, which can break each of them."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdi.config.network import NetworkConfig
from mdi.config.options import StarterOptions
from mdi.control.status import NodeState
from mdi.engine.sample import Outcome, Sample
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.timeouts import Timeouts
from mdi.nodes.starter import Starter
from support.relay import Relay
from support.rings import ANY_PORT, Machine, starter_for
from support.scripts import free_ports, wait_until

PROMPTS = [list(range(5, 65)), [9], list(range(40, 80)), [7, 8]]
N_TOKENS = 16
# Of a ring that is checked for faults of another kind: on a busy machine a thread may pause for many messages' time.
TIMEOUTS = Timeouts(
    handshake_s=0.5, answer_s=5.0, status_s=5.0, request_read_s=4.0, retry_s=0.1, ready_check_s=0.3, slack=100.0
)
PEER_TIMEOUT_S = 0.8  # shorter than a stall of the relay
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 0.9, "seed": 7}
PENALIZED = {
    "temperature": 0.9, "seed": 7, "top_k": 100, "top_p": 0.98, "min_p": 0.001, "frequency_penalty": 0.6,
    "presence_penalty": 0.8, "repetition_penalty": 1.2, "logit_bias": ((7, 5.0), (9, 4.0), (40, -100.0)),
}  # fmt: skip
STYLES = {"greedy": GREEDY, "seeded": SEEDED, "penalized": PENALIZED}


class Bench:
    """A starter's network with a relay in every link: `ring[k]` leads into node k, `http[k]` to its HTTP."""

    def __init__(
        self, n_nodes: int, cache: Path, stack: contextlib.ExitStack, access: Access = THIS_MACHINE,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:  # fmt: skip
        self._timeouts = timeouts
        self.machines = {number: Machine(cache, timeouts, access) for number in range(1, n_nodes)}
        http_port, port_in = free_ports(2)
        nodes = {0: replace(ANY_PORT, http_port=http_port, port_in=port_in, access=access)}
        nodes |= {number: machine.node for number, machine in self.machines.items()}
        self.ring = {number: stack.enter_context(Relay(node.port_in)) for number, node in nodes.items()}
        self.http = {number: stack.enter_context(Relay(node.http_port)) for number, node in nodes.items() if number}
        for number, machine in self.machines.items():
            machine.node = replace(machine.node, known_as=(f"127.0.0.1:{self.http[number].port}",))
            machine.start()
            stack.callback(machine.kill)
        self.behind = {self.ring[0].port: port_in}  # where the starter really listens
        seen = {number: replace(node, port_in=self.ring[number].port) for number, node in nodes.items()}
        for number, relay in self.http.items():
            seen[number] = replace(seen[number], http_port=relay.port)
        self.network = NetworkConfig(seen[0], tuple(seen[number] for number in self.machines))
        self.starter: Starter | None = None

    def run(
        self, folder: Path, on_token: Callable[[int], None] | None = None, before: Callable[[], None] | None = None,
        prompts: Sequence[Sequence[int]] = PROMPTS, **options: Any,
    ) -> list[list[int]]:  # fmt: skip
        """The tokens of each sample; `on_token` is told how many there are, `before` is called with the ring closed."""
        values = {
            "dtype": "float32", "ignore_eos": True, "keep_nodes": True, "n_tokens": N_TOKENS,
            "peer_timeout_s": PEER_TIMEOUT_S, "node_timeout_s": 20.0, **GREEDY, **options,
        }  # fmt: skip
        arguments = StarterOptions(ckpt=folder, **values)
        self.n_tokens = 0

        def count(sample: Sample, outcome: Outcome) -> None:
            self.n_tokens += outcome.n_accepted
            if on_token is not None:
                on_token(self.n_tokens)

        run = starter_for(self.network, arguments, prompts, sink=count, timeouts=self._timeouts)
        with run as (self.starter, samples):
            self.starter.prepare()
            if before is not None:
                before()
            self.starter.run()
        assert self.n_tokens == N_TOKENS * len(prompts), "a token was shown twice, or not at all"
        return [sample.tokens for sample in samples]

    @property
    def n_recoveries(self) -> int:
        assert self.starter is not None
        return self.starter.n_recoveries

    def assert_at_rest(self) -> None:
        """All secondaries that live are idle and have given their slots back."""
        for machine in self.machines.values():
            if machine._secondary is not None:
                wait_until(lambda m=machine: m.secondary.status().state is NodeState.IDLE, 60, "a secondary is idle")
                assert machine.secondary.slots == (0, 0)


def once(at: int, action: Callable[[], object]) -> Callable[[int], None]:
    """Act when there are `at` tokens."""
    return lambda n_tokens: None if n_tokens != at else (action(), None)[1]
