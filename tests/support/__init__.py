"""What tests share: stand-ins, small models, rings, processes, raw frames."""

import os

# Nodes share the cores. torch reads it when it is imported, which other modules here do. With more threads sums of
# floats are rounded otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
