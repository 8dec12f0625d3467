"""docs/sizing.md holds what the code computes, which is what a starter plans with."""

from collections.abc import Callable

import pytest

from benchmarks import sizing
from mdi.cluster.budget import budgets_of, fit_slots, roomiest_split
from mdi.convert.known_models import KNOWN_MODELS
from mdi.errors import ConfigError
from support.paths import ROOT

PAGE = ROOT / "docs" / "sizing.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", sizing.TABLES)
def test_the_page_has_each_table_as_it_is_computed(name: str) -> None:
    assert sizing.TABLES[name]() in PAGE.read_text(encoding="utf-8"), "remake it: python benchmarks/sizing.py"


@pytest.mark.parametrize("make", [sizing.sizes_table, sizing.needs_table])
def test_every_model_with_a_short_name_has_its_row(make: Callable[[], str]) -> None:
    assert [line.split("`")[1] for line in make().splitlines()[2:]] == list(KNOWN_MODELS)


@pytest.mark.parametrize("n_nodes", sizing.NODES)
def test_a_starter_finds_enough_what_the_page_says_and_too_little_below(n_nodes: int) -> None:
    config, int8 = sizing.config_of("tinyllama"), sizing.FORMATS["int8"]
    free_bytes = int(sizing.free_bytes_needed("tinyllama", int8, n_nodes) - sizing.PROCESS_BYTES["cpu"]) + 10
    session = {"context": sizing.CONTEXT, "max_rows": sizing.MAX_ROWS, "stored": sizing.STORED}

    def n_slots(free_bytes: int) -> int:
        nodes = sizing.nodes_of(int8, n_nodes, free_bytes)
        spans = roomiest_split(nodes, config, context=sizing.CONTEXT, n_slots=n_nodes, stored=sizing.STORED)
        return fit_slots(budgets_of(nodes, config, spans, **session), n_nodes, fixed=False)

    assert n_slots(free_bytes) == n_nodes
    if n_nodes > 1:
        assert n_slots(free_bytes - 100) == n_nodes - 1
    else:
        with pytest.raises(ConfigError):
            n_slots(free_bytes - 100)
