"""The name of the kernels' arithmetic, by which nodes know that they compute alike."""

import hashlib
from pathlib import Path

from mdi.model.backends.native.library import NUMERICS

# Of `bits.txt`, what the kernels give on every CPU, under each name that the arithmetic has had.
DIGESTS = {"native-1": "0184b3b0cd286b47"}


def test_other_bits_have_another_name() -> None:
    digest = hashlib.sha256(Path(__file__).with_name("bits.txt").read_bytes()).hexdigest()[:16]
    advice = "where lines of bits.txt are other ones now, NUMERICS gets a new number; new lines alone do not need one"
    assert DIGESTS[NUMERICS] == digest, advice
