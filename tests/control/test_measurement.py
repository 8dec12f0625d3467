"""Requests to measure and their answers as JSON: whole, checked field by field."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from mdi.control.measurement import (
    LinkRequest,
    LinkTimes,
    Listening,
    Measured,
    MeasureRequest,
    StageTimes,
    measured_from_json,
    measured_to_json,
    request_from_json,
    request_to_json,
)
from mdi.control.protocol import WrongVersion
from mdi.errors import ControlError
from mdi.ids import Rank
from mdi.net.sockets import Peer
from support.control import STAGE_REQUEST, STAGE_TIMES

LINK = LinkRequest(2**63, Rank(1), Peer("starter", "::1", 5088), 64, "bfloat16")
TIMES = LinkTimes(1e-4, 1e9, 2.5e8)


@pytest.mark.parametrize("request_", [STAGE_REQUEST, LINK])
def test_a_request_is_itself_again(request_: MeasureRequest) -> None:
    assert request_from_json(json.loads(json.dumps(request_to_json(request_)))) == request_


@pytest.mark.parametrize("measured", [STAGE_TIMES, TIMES, Listening()])
def test_an_answer_is_itself_again(measured: Measured) -> None:
    assert measured_from_json(json.loads(json.dumps(measured_to_json(measured)))) == measured


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", {}),
        ("config", {"n_embd": "64", "n_layer": 2}),
        ("stored_dtype", "float8"),
        ("stored", None),
        ("dtype", "int8"),
        ("quantize", "int3"),
        ("kv_dtype", "int4"),
        ("has_head", 1),
        ("nodes_on_host", 0),
        ("again", None),
    ],
)
def test_a_request_with_a_wrong_field_is_refused_by_its_name(field: str, value: Any) -> None:
    data = {"stage": asdict(STAGE_REQUEST) | {field: value}}
    with pytest.raises(ControlError, match=f"StageRequest's {field} is not acceptable"):
        request_from_json(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_dtype", "bfloat16"),
        ("layers", []),
        ("layers", [[1, 128]]),
        ("layers", [[1, 128, -1.0]]),
        ("layers", [[1, 128, 0.0]]),
        ("layers", [[1.5, 128, 1.0]]),
        ("layers", [[1, 128, 1.0]] * 65),
        ("head", [[0, 1.0]]),
        ("message_s", float("nan")),
        ("disk_read_bytes_s", 0),
        ("free_memory_bytes", -1),
        ("memory_limit_bytes", "3GB"),
        ("threads", "2"),
    ],
)
def test_an_answer_with_a_wrong_field_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ControlError, match=f"StageTimes's {field} is not acceptable"):
        StageTimes.from_json(asdict(STAGE_TIMES) | {field: value})


def test_fields_that_are_missing_or_unknown_are_named() -> None:
    data = asdict(LINK)
    del data["rank"]
    with pytest.raises(ControlError, match="LinkRequest has wrong fields: rank"):
        request_from_json({"link": data})
    with pytest.raises(ControlError, match="LinkTimes has wrong fields: other"):
        measured_from_json({"link": asdict(TIMES) | {"other": 1}})


def test_another_version_is_told_as_such() -> None:
    with pytest.raises(WrongVersion, match="the caller runs version"):
        request_from_json(request_to_json(replace(STAGE_REQUEST, version="0.0.1")))


def test_both_ends_of_a_link_expect_what_the_other_says() -> None:
    other = replace(LINK, rank=Rank(0), peer=Peer("secondary 0", "::1", 5090))
    one, two = LINK.link_config(0), other.link_config(0)
    assert (one.hello, two.hello) == (two.expected, one.expected)
    assert one.session == two.session
    assert (one.returning, two.returning) == (False, True)
    assert one.session.max_rows * LINK.row_bytes == 1 << 20
