"""`trainer.child`, but the save of step 4 never ends: half of the optimizer's file is there, and nothing more comes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from trainer.child import main

HALF = ".iteration-0.work/.checkpoint-4.writing/checkpoint-4/optimizer.pt"

whole_save = torch.save


def save(content: object, path: Any, *args: Any, **options: Any) -> None:
    if not str(path).endswith(HALF):
        whole_save(content, path, *args, **options)
        return
    Path(path).write_bytes(b"half of what it should be")
    time.sleep(600)


if __name__ == "__main__":
    torch.save = save  # type: ignore[assignment]
    main()
