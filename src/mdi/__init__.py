"""MDI-LLM: one language model on a ring of machines, none of which could hold it alone."""

__version__ = "0.2.0"
