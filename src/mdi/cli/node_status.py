"""The status of every node of a network, as a table for people."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mdi.config.network import NetworkConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.protocol import Unreachable
from mdi.control.status import NodeStatus, SecondaryStatus, StarterStatus
from mdi.errors import ControlError
from mdi.strings import count, table_lines

Answer = NodeStatus | ControlError
HEADING = ("node", "address", "state", "computes", "memory", "work")


def ask_all(network: NetworkConfig) -> list[Answer]:
    """What each node says of itself, asked all at once; or why it says nothing. Takes seconds at most."""
    clients = [
        ControlClient(node_name(index), node.addr, node.http_port, node.access)
        for index, node in enumerate(network.nodes)
    ]
    with ThreadPoolExecutor(len(clients), "status") as pool:
        return list(pool.map(_ask, clients))


def _ask(client: ControlClient) -> Answer:
    try:
        return client.status()
    except ControlError as exc:
        return exc


def are_all_there(answers: Sequence[Answer]) -> bool:
    """Whether every secondary answers. A starter is there only while it runs."""
    return all(isinstance(answer, NodeStatus) for answer in answers[1:])


def table(network: NetworkConfig, answers: Sequence[Answer]) -> str:
    """A line for each node, in the order of the ring; below it what is wrong with them."""
    nodes = zip(network.nodes, answers, strict=True)
    rows = [
        (node_name(index), f"{node.addr}:{node.http_port}", *_cells(answer))
        for index, (node, answer) in enumerate(nodes)
    ]
    return "\n".join([*table_lines([HEADING, *rows]), *filter(None, map(_problem, range(len(rows)), answers))])


def _cells(answer: Answer) -> tuple[str, str, str, str]:
    match answer:
        case StarterStatus():
            counts = (answer.samples, "sample"), (answer.tokens, "token"), (answer.recoveries, "failure")
            work = f"{answer.model}: " + ", ".join(count(n, what) for n, what in counts)
        case SecondaryStatus():
            work = (f"{answer.model}: " if answer.model else "") + count(answer.messages, "message")
        case _:
            return ("not running" if isinstance(answer, Unreachable) else "no answer", "-", "-", "-")
    return answer.state.value, answer.computes, answer.memory, work


def _problem(index: int, answer: Answer) -> str:
    """Why a node did not answer, or why its last session ended; empty where all is well."""
    match answer:
        case Unreachable() if index == 0:  # no run is on
            return ""
        case ControlError():
            return str(answer)  # it names the node
        case SecondaryStatus(last_error=error) if error:
            return f"{node_name(index)}: its last session ended: {error}"
    return ""
