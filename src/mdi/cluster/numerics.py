"""Whether the nodes of a ring compute alike."""

from collections.abc import Mapping


def differing_numerics(numerics: Mapping[str, str | None]) -> str | None:
    """One line that names the nodes which compute differently, and how; None where all compute alike.

    Args:
        numerics: what each node tells of its arithmetic, by the node's name; None: it tells nothing.
    """
    nodes: dict[str, list[str]] = {}
    for name, own in numerics.items():
        if own is not None:
            nodes.setdefault(own, []).append(name)
    if len(nodes) < 2:
        return None
    told = "; ".join(f"{', '.join(names)}: {own}" for own, names in nodes.items())
    return f"the nodes compute differently ({told}), so the text may change where layers move from one to another"
