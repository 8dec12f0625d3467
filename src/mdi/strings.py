"""Values as they appear in messages."""


def one_line(foreign: BaseException | str, limit: int = 300) -> str:
    """The text of a foreign exception, or of another node, fit to stand in the one line of ours."""
    return " ".join(str(foreign).split())[:limit] or type(foreign).__name__
