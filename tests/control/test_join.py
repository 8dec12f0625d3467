"""`POST /join`: what a node asks a starter, and what it is told."""

import json

import pytest

from mdi import __version__
from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.protocol import NodeBusy, NotANode, WrongVersion
from mdi.control.routes import ControlServer
from mdi.errors import ControlError
from support.control import HOST, FakeNode, answer_of, answering, ask, reason_of


def test_a_node_learns_its_name_and_the_starter_its_address(client: ControlClient, node: FakeNode) -> None:
    assert client.join(JoinRequest(8090)) == "secondary 5"
    assert node.asked == [(JoinRequest(8090), HOST)]


@pytest.mark.parametrize("refusal", [NodeBusy("the first ring is being formed"), ControlError("this is a secondary")])
def test_a_refusal_is_told(client: ControlClient, node: FakeNode, refusal: ControlError) -> None:
    node.refusal = refusal
    with pytest.raises(ControlError, match=str(refusal)) as caught:
        client.join(JoinRequest(8090))
    assert isinstance(caught.value, NodeBusy) == isinstance(refusal, NodeBusy)


def test_another_version_is_refused(client: ControlClient) -> None:
    with pytest.raises(WrongVersion, match=f"the node runs version 0.0.0, this starter {__version__}"):
        client.join(JoinRequest(8090, version="0.0.0"))


@pytest.mark.parametrize(
    "body", [[], {}, {"port": 8090}, *({"port": p, "version": __version__} for p in (0, "x", 1e5))]
)
def test_nonsense_is_refused(server: ControlServer, node: FakeNode, body: object) -> None:
    assert reason_of(ask(server, "POST", "/join", json.dumps(body).encode()), 400)
    assert node.asked == []


def test_an_answer_without_a_name_is_not_that_of_a_starter() -> None:
    answer = answer_of(b'{"name": 5}', "Content-Type: application/json")
    with answering(answer) as client, pytest.raises(NotANode, match="not an answer to /join"):
        client.join(JoinRequest(8090))
