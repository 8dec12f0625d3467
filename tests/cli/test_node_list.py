"""The list of nodes, and what is said of those that no ring can be formed of."""

from dataclasses import replace

from mdi import __version__
from mdi.cli.node_list import label, table, troubles
from mdi.cluster.node_survey import Answered, NodeToAsk
from mdi.control.protocol import NotAuthorized, Unreachable
from mdi.control.reach import Outcome, Reach
from mdi.control.status import NodeStatus, SecondaryStatus
from mdi.errors import ControlError
from mdi.model.span import Span
from support.statuses import IDLE

NOW_S = 1.8e9
WHOLE = Reach(Outcome.REACHED, Outcome.REACHED)
STATUS = replace(
    IDLE, version=__version__, name="pi4", process="a", boot="x", time_s=NOW_S, free_memory_bytes=3_500_000_000
)


def answered(addr: str, answer: NodeStatus | ControlError, port: int = 8088, name: str = "secondary 0") -> Answered:
    return Answered(NodeToAsk(name, addr, port, by_address=True), answer)


def other(**changes: object) -> SecondaryStatus:
    return replace(STATUS, **{"name": "pi5", "process": "b", "boot": "y", **changes})  # type: ignore[arg-type]


def test_every_node_is_a_line() -> None:
    refused = Unreachable("secondary 0 at http://10.0.0.7:8088 cannot be reached")
    refused.__cause__ = ConnectionRefusedError()
    nodes = [
        answered("10.0.0.5", STATUS),
        answered("fd00::6", other(model="org/tiny", span=Span(2, 4)), 8090),
        answered("10.0.0.7", refused),
        answered("10.0.0.8", NotAuthorized("another key")),
    ]
    heading, *lines = table(nodes).splitlines()
    columns = [heading.index(word) for word in ("address", "device", "memory", "version", "state", "model")]
    cells = [[line[a:b].strip() for a, b in zip([0, *columns], [*columns, 200], strict=True)] for line in lines]
    assert cells == [
        ["pi4", "10.0.0.5", "cpu", "3.50 GB free", __version__, "idle", "-"],
        ["pi5", "[fd00::6]:8090", "cpu", "3.50 GB free", __version__, "idle", "org/tiny, layers 2 to 3"],
        ["secondary 0", "10.0.0.7", "-", "-", "-", "refused", "-"],
        ["secondary 0", "10.0.0.8", "-", "-", "-", "other key", "-"],
    ]


def test_nothing_is_said_of_nodes_that_can_form_a_ring() -> None:
    nodes = [answered("10.0.0.5", STATUS), answered("10.0.0.6", other())]
    found = {(one, another): WHOLE for one in range(3) for another in range(3) if one != another}
    assert troubles(nodes, found, NOW_S) == []


def test_each_thing_that_is_wrong_is_one_line() -> None:
    nodes = [answered("10.0.0.5", STATUS)]
    cases = [
        (
            answered("10.0.0.6", other(version="0.0.1")),
            f"pi5 (10.0.0.6) runs version 0.0.1, this machine {__version__}:",
        ),
        (answered("10.0.0.6", other(time_s=NOW_S - 7300)), "the clock of pi5 (10.0.0.6) is 2 hours behind"),
        (answered("10.0.0.6", other(time_s=NOW_S + 86400 * 3)), "the clock of pi5 (10.0.0.6) is 3 days ahead"),
        (answered("10.0.0.6", other(name="pi4")), "2 machines are called pi4: 10.0.0.5, 10.0.0.6;"),
        (answered("10.0.0.6", other(process="a")), "10.0.0.5 and 10.0.0.6 are one node:"),
        (answered("10.0.0.6", NotAuthorized("secondary 1 did not show the key")), "secondary 1 did not show the key"),
    ]
    for node, told in cases:
        (line,) = troubles([*nodes, node], {}, NOW_S)
        assert line.startswith(told)


def test_several_nodes_of_one_machine_are_no_trouble() -> None:
    second = replace(STATUS, process="b", time_s=NOW_S + 2)
    assert troubles([answered("10.0.0.5", STATUS), answered("10.0.0.5", second, 8089)], {}, NOW_S) == []
    assert label(answered("10.0.0.5", second, 8089)) == "pi4 (10.0.0.5:8089)"


def test_a_starter_that_does_not_run_is_no_trouble() -> None:
    starter = answered("10.0.0.4", Unreachable("starter cannot be reached"), name="starter")
    assert troubles([starter], {(0, 1): Reach(Outcome.REFUSED)}, NOW_S) == []
    assert "not running" in table([starter])


def test_what_cannot_be_reached_from_here_is_said_once() -> None:
    nobody = answered("10.0.0.6", Unreachable("secondary 1 cannot be reached"))
    found = {(0, 1): WHOLE, (1, 0): WHOLE, (0, 2): Reach(Outcome.TIMED_OUT), (1, 2): WHOLE}
    assert troubles([answered("10.0.0.5", STATUS), nobody], found, NOW_S) == ["secondary 1 cannot be reached"]
