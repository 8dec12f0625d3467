"""What other programs take of the machine while something is measured."""

import subprocess
import sys

import pytest

from mdi.other_load import LoadMeter, OtherLoad, Reading, read_load


@pytest.mark.parametrize(
    ("busy_s", "own_s", "cores"),
    [(10.0, 10.0, 0.0), (19.0, 10.0, 0.9), (20.0, 0.0, 2.0), (9.9, 10.0, 0.0), (90.0, 0.0, 2.0)],
)
def test_what_others_took_is_what_was_busy_and_not_ours(busy_s: float, own_s: float, cores: float) -> None:
    readings = iter([Reading(100.0, 50.0, 7.0), Reading(110.0, 50.0 + busy_s, 7.0 + own_s)])
    assert LoadMeter(lambda: next(readings)).stop(2) == OtherLoad(pytest.approx(cores), 2)


def test_a_machine_of_which_others_take_more_than_a_tenth_is_busy() -> None:
    assert not OtherLoad(0.2, 2).is_heavy
    assert OtherLoad(0.25, 2).is_heavy
    assert str(OtherLoad(1.3, 2)) == "1.30 of 2 cores"


def test_the_time_of_children_that_run_is_ours() -> None:
    before = read_load()
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert read_load().own_s - before.own_s >= 0.45
        child.kill()


def test_the_time_of_children_that_have_ended_is_ours() -> None:
    before = read_load()
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    after = read_load()
    assert after.own_s - before.own_s >= 0.45
    assert after.busy_s - before.busy_s >= 0.45
    assert after.at_s > before.at_s
