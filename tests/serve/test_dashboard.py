"""The dashboard in `deploy/`: every metric that it asks for is one that a server tells."""

import json
import re
from typing import Any

import pytest

from mdi.serve.service import Service
from support.paths import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.fixture
def told(service: Service) -> set[str]:
    """The names of all series, those of labelled counters as soon as they have one."""
    service.metrics.refused(400)
    names = {sample.name for metric in service.metrics.registry.collect() for sample in metric.samples}
    return names | {"mdi_samples_total"}


def expressions() -> set[str]:
    queries = {target["expr"] for panel in PANELS for target in panel["targets"]}
    queries |= {annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]}
    return queries | {variable["query"] for variable in DASHBOARD["templating"]["list"]}


def test_every_metric_of_the_dashboard_is_told(told: set[str]) -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\bmdi_\w+", expression)}
    assert len(asked) > 15
    assert asked - told == set()


def test_every_metric_of_a_node_is_shown(told: set[str]) -> None:
    shown = " ".join(expressions())
    left_out = {name for name in told if name.startswith("mdi_node_") and name not in shown}
    assert left_out == {"mdi_node_peak_memory_bytes"}, "which is what the curve of the memory has reached"


def test_panels_do_not_overlap_and_have_names() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert all(panel["title"] and panel["description"] for panel in PANELS)
