"""A starter that measures and predicts: `python -m benchmarks.plan_driver` answers JSON lines.

A request has `ckpt`, `nodes_config`, `seen_as` (a network file with the ports of relays, or null), `context`,
`n_samples`, `quantize` of the run, and `splits`, each of which is a list of layers. The answer has the tokens/s that
are predicted for each split, the split that the planner would choose with all nodes, how many nodes it would choose,
and how many layers each node can hold.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.ring_driver import network_of
from benchmarks.workers import answer, requests
from mdi.checkpoint.folder import open_folder
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.config.network import node_name
from mdi.control.client import ControlClient
from mdi.ids import NodeId
from mdi.inbox import Inbox
from mdi.model.backends.select import prepare
from mdi.net.sockets import listen

MAX_ROWS = 128  # of a message, as a starter has it by default


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """What is predicted after everything was measured anew."""
    network, device = network_of(request), torch.device("cpu")
    model = open_folder(Path(request["ckpt"]), len(network.nodes))
    measured = MeasuredNetwork(
        network,
        model,
        device,
        request["context"],
        request["n_samples"],
        MAX_ROWS,
        dtype="float32",
        quantize=request["quantize"],
    )
    clients = {
        NodeId(i): ControlClient(node_name(i), node.addr, node.http_port) for i, node in enumerate(network.nodes) if i
    }
    with listen(network.starter.addr, network.starter.port_in) as listener:
        costs = measured.measure(clients, listener, Inbox(), again=True)
    order = range(len(network.nodes))
    rates = [costs.tokens_s(order, layers, request["n_samples"]) for layers in request["splits"]]
    planned, max_layers = costs.plan(use_all=True).layers, [node.max_layers for node in costs.nodes]
    return {
        "tokens_s": rates,
        "planned": list(planned),
        "n_nodes": len(costs.plan().order),
        "max_layers": max_layers,
    }


def main() -> None:
    prepare(torch.device("cpu"), "auto")
    answer({"ready": True})
    for request in requests():
        answer(predict(request))


if __name__ == "__main__":
    main()
