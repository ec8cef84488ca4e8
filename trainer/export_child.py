"""The process that merges, converts or uploads: `python -m trainer.export_child TASK`, started by `trainer.export`.

As `trainer.child`: the task is in the JSON file that its argument names, events go to stdout, one JSON object a line, and the end of stdin
means that the parent is gone. A line `stop` ends it at once: nothing here is worth saving half-done, and the parent lets go of the rest.

Task: {"task": "merge", "config", "checkpoint", "out"}, {"task": "convert", "script", "arguments"}, {"task": "push", "folder", "repo",
"private"}. Events: pushed, and last one of finished, failed, stopped.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from trainer.checkpoints import SPARE_BYTES, is_full_disk, require_space
from trainer.child import Emit, public_name, read_lines, take_stdout, watch_parent
from trainer.errors import ConfigError, NoSpace, TrainerError


def main() -> NoReturn:
    """Do the one task and end the process."""
    emit = take_stdout()
    stop = threading.Event()
    threading.Thread(target=watch_parent, args=(read_lines(0), stop), daemon=True).start()
    threading.Thread(target=end_when_asked, args=(stop, emit), daemon=True).start()
    emit(outcome(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), emit))
    sys.stderr.flush()
    os._exit(0)


def end_when_asked(stop: threading.Event, emit: Emit) -> None:
    stop.wait()
    emit({"event": "stopped", "message": "Stopped. Nothing half written was left."})
    os._exit(0)


def outcome(task: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Do the task and give its last event."""
    try:
        {"merge": merge, "convert": convert, "push": push}[task["task"]](task, emit)
    except TrainerError as error:
        return {"event": "failed", "error": public_name(error), "message": str(error)}
    except Exception as error:
        if not is_full_disk(error):
            raise
        message = "The disk ran full while the export was written. Nothing half written was left. Free some space, then ask again."
        return {"event": "failed", "error": NoSpace.__name__, "message": message}
    return {"event": "finished"}


def merge(task: dict[str, Any], emit: Emit) -> None:
    """The adapter merged into its base in fp32, where adding it loses least, and saved in the student's precision.

    Raises NoSpace before anything is written, OutOfMemory.
    """
    import torch

    from trainer.config import stored_config
    from trainer.models import dtype_of, load_model, load_tokenizer, memory_errors

    config, checkpoint, out = stored_config(task["config"]), Path(task["checkpoint"]), Path(task["out"])
    with memory_errors("the merged student in fp32. Export the adapter alone, or merge on a machine with more memory."):
        model = load_model(config, checkpoint, dtype=torch.float32).to(dtype_of(config.student.precision))
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    require_space(out, weight_bytes + SPARE_BYTES, purpose="The merged student")
    model.config.use_cache = True
    model.save_pretrained(out)
    load_tokenizer(config, checkpoint).save_pretrained(out)


def convert(task: dict[str, Any], emit: Emit) -> None:
    """Run llama.cpp's converter in this process, as Python runs a script."""
    script = Path(task["script"])
    sys.argv = [str(script), *task["arguments"]]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise ConfigError(f"llama.cpp's converter ended with status {ended.code}. The worker's log has what it wrote.") from ended
    except Exception as error:
        if is_full_disk(error):
            raise
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
        raise ConfigError(
            f"llama.cpp's converter does not take this model ({told}). Update llama.cpp, or export merged weights."
        ) from error


def push(task: dict[str, Any], emit: Emit) -> None:
    """Make the repository where there is none and upload the folder as one commit; never in private to one that is public."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = os.environ["HF_TOKEN"]
    api, repo = HfApi(token=token), task["repo"]
    try:
        found = api.create_repo(repo, private=task["private"], exist_ok=True, repo_type="model")
        if task["private"] and not api.model_info(found.repo_id).private:
            raise ConfigError(f"{found.repo_id} is there already and public. Name another one, or say that everybody may see it.")
        commit = api.upload_folder(repo_id=found.repo_id, folder_path=task["folder"], commit_message="A checkpoint of LionWeb")
    except HfHubHTTPError as error:
        raise _refusal(repo, error.response.status_code, str(error.server_message or "").replace(token, "…")) from None
    except httpx2.HTTPError as error:
        raise TrainerError(f"The Hub could not be reached ({type(error).__name__}). Try again later.") from None
    emit({"event": "pushed", "url": str(found), "commit": commit.oid})


def _refusal(repo: str, status: int, said: str) -> TrainerError:
    if status in (401, 403):
        return ConfigError(f"The Hub refused (HTTP {status}): the token in HF_TOKEN may not write to {repo}. {said}".strip())
    if status >= 500:
        return TrainerError(f"The Hub is unwell (HTTP {status}). Try again later.")
    return ConfigError(f"The Hub refused (HTTP {status}). {said}".strip())


if __name__ == "__main__":
    main()
