"""What was measured of a network is kept for the next start."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mdi.checkpoint.folder import open_folder
from mdi.cluster.measured_network import MeasuredNetwork
from support.measured import network_with, times_of


@pytest.mark.parametrize("is_shared", [True, False])
def test_times_are_known_again_as_they_were(tiny: Path, tmp_path: Path, is_shared: bool) -> None:
    network, times = network_with(1, 2)
    times = replace(times, alone=times_of(0.5, has_head=True) if is_shared else None)
    measured = MeasuredNetwork(network, open_folder(tiny, 2), torch.device("cpu"), 128, 4, 128, folder=tmp_path)
    assert measured.known() is None
    measured._keep(times)
    known = measured.known()
    assert known is not None and known.times == times
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace('"alone"', '"former"'))
    assert measured.known() is None, "of another version of the file"
    assert replace(measured, quantize="int8").known() is None
