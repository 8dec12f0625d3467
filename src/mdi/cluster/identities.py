"""Whether each place in a network is a node of its own: told before a ring would wait for one that is there twice."""

from collections.abc import Mapping

from mdi.cluster.node_survey import NodeSurvey, NodeToAsk
from mdi.config.network import NetworkConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.status import NodeStatus
from mdi.errors import ConfigError
from mdi.ids import NodeId
from mdi.net.access import parse_ip, resolved
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts


def refuse_twins(clients: Mapping[NodeId, ControlClient], statuses: Mapping[NodeId, NodeStatus | None]) -> None:
    """Raise `ConfigError` where two addresses of the network are those of one node, which would wait for itself."""
    urls: dict[str, str] = {}
    for node, status in statuses.items():
        if status is not None and status.process is not None:
            url = clients[node].url
            if (other := urls.setdefault(status.process, url)) != url:
                raise ConfigError(f"{other} and {url} are one node: give each node once")


def refuse_shared_names(network: NetworkConfig, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
    """Raise `ConfigError` where a name has several addresses and several nodes answer there: each call would be for
    one or the other of them.

    A machine may well have several addresses. Those where nobody answers count for nothing.
    """
    survey = NodeSurvey(network.starter.access, timeouts)
    for index, node in enumerate(network.nodes):
        if not index or not node.is_called_by_address or parse_ip(node.addr) is not None:
            continue
        if len(addresses := sorted(resolved(node.addr))) < 2:
            continue
        places = [NodeToAsk(node_name(index), address, node.http_port, by_address=True) for address in addresses]
        told = {found.status.process: found.node.addr for found in survey.ask(places) if found.status is not None}
        if len(told) > 1:
            raise ConfigError(f"{node.addr} is the name of several nodes, at {' and '.join(told.values())}: give these")
