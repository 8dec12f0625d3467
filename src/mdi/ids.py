"""The two ways in which nodes are numbered, as distinct types: mixing them up would send layers to the wrong node."""

from typing import NewType

Rank = NewType("Rank", int)  # place in the ring, in the order of the layers; the starter is 0. Changes with the members
NodeId = NewType("NodeId", int)  # place in the nodes configuration; the starter is 0. Never changes during a run
