"""A server that never outlives whoever started it: `python -I trainer/guarded.py COMMAND ...`, leading a process group of its own.

The parent holds the other end of its stdin open. When that closes, by the parent's wish or its death, the whole group is asked to end, and
what has not ended after END_S is killed. Where the server ends by itself, what it left in the group is asked to end, and its exit status
becomes this one's. Imports nothing of ours: a server may need another environment than we do.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import NoReturn

POLL_S = 0.2
"""How often it is looked whether the server still runs."""

END_S = 15.0
"""How long a server may take to end in order."""


def main() -> NoReturn:
    """Run the command that the arguments name until it ends, or stdin does."""
    # The signal goes to the whole group, of which this is one. A handler, unlike SIG_IGN, is not inherited by the server.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while server.poll() is None:
        ready, _, _ = select.select([0], [], [], POLL_S)
        if ready and not os.read(0, 4096):
            end_group(server)
    os.killpg(0, signal.SIGTERM)  # what it left of its own: nobody else might be there to end it
    time.sleep(POLL_S)
    sys.exit(server.returncode if server.returncode >= 0 else 128 - server.returncode)


def end_group(server: subprocess.Popen[bytes]) -> None:
    """End everything in our process group, ourselves at last."""
    os.killpg(0, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(END_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
