"""Independent random streams from one seed, the same on every machine and in every order of work."""

import hashlib
import random


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed in 0..2**31-1 for one purpose of one run, for instance `derive_seed(seed, "generation", 2, "hard", 17)`."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF


def stream(seed: int, *parts: str | int) -> random.Random:
    """A generator of its own for one purpose."""
    return random.Random(derive_seed(seed, *parts))
