"""Seed pool files as they come from a person's machine."""

from trainer.seed_pools import SeedPoolError


def decode_pool_file(data: bytes, *, name: str) -> str:
    """A file's text. Raises SeedPoolError where it is not UTF-8, naming every line that is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SeedPoolError(name, _undecodable_lines(data)) from None


def _undecodable_lines(data: bytes) -> list[tuple[int, str]]:
    problems = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append((number, f"Not UTF-8 at byte {error.start + 1} of the line. Save the file as UTF-8."))
    return problems
