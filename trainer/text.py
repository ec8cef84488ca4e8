"""Text as models and servers send it, made fit to be kept."""


def storable(text: str) -> str:
    """The text without what a database or a UTF-8 file cannot hold: NUL is dropped, half a surrogate pair becomes '?'."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
