"""Which nodes take part, with which layers, and what to do when one is lost."""
