"""The loop of an imitation: `transformers.Trainer` over planned batches, its news told, its saves complete or absent.

This module imports torch and transformers.Trainer: only a child process, or a test, imports it.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from trainer.checkpoints import SPARE_BYTES, digests_of, full_disk_errors, writing_whole
from trainer.config import RunConfig
from trainer.errors import DataWorkerDied, LossDiverged
from trainer.examples import PlannedExamples, collate_packed, collate_padded
from trainer.loss import response_loss
from trainer.models import device
from trainer.records import Metric, Saved, TuningNews
from trainer.seeds import derive_seed
from trainer.together import PATIENCE, anyone, gathered_state, wait_for_all

log = logging.getLogger(__name__)

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm, as the authors' code does by its library's default."""

KEPT_SAVES = 2
"""Resumable saves that are kept: where the last is damaged, the one before it serves."""

SAVE_DIGESTS = "sha256.json"
"""The file of a save that lists the sha256 of every other one."""

SMOOTHED_OVER = 10
"""A loss diverges where its mean over so many logs is above its first, and twice the lowest."""


def training_arguments(
    config: RunConfig, work: Path, *, steps: int, iteration: int, device_batch: int, processes: int = 1
) -> TrainingArguments:
    """The paper's settings in the words of transformers. The order of the data is planned, so nothing here shuffles."""
    settings, where = config.imitation, device()
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=settings.batch_size // (device_batch * processes),
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=warmup_steps(steps, share=settings.warmup),
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=config.student.precision == "bf16",
        fp16=config.student.precision == "fp16",
        tf32=True if _has_tf32() and config.student.precision == "bf16" else None,
        use_cpu=where.type == "cpu",
        ddp_find_unused_parameters=False,
        ddp_timeout=int(PATIENCE.total_seconds()),
        seed=derive_seed(config.seed, "imitation", iteration),
        train_sampling_strategy="sequential",
        logging_steps=settings.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=settings.data_workers,
        dataloader_pin_memory=where.type == "cuda",
    )
    # One process drives one device; the library would otherwise spread a batch over every visible GPU.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _has_tf32() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def warmup_steps(steps: int, *, share: float) -> int:
    """Steps of warm-up: the share, rounded up; none where it is less than a step, for the first step of a warm-up learns nothing."""
    return math.ceil(steps * share) if steps * share >= 1 else 0


class Tuning(Trainer):
    """transformers.Trainer over planned examples, with news out and saves that are complete or absent.

    The loss is the mean over the response tokens of the whole batch, on all devices together: how the batch is cut for the device,
    padded or packed, changes nothing but the speed. Scores are computed only where a token is to be learnt.
    """

    def __init__(
        self,
        *,
        model: Any,
        arguments: TrainingArguments,
        examples: PlannedExamples,
        pad_id: int,
        packed: bool,
        tell: Callable[[TuningNews], None],
        should_stop: Callable[[], bool],
        save_bytes: int,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=collate_packed if packed else partial(collate_padded, pad_id=pad_id),
            callbacks=[_Stops(should_stop)],
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        self.tell = tell
        self.save_bytes = save_bytes
        self._scores_some = accepts_logits_to_keep(model)
        batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        tokens = list(accumulate((examples.examples[i].response_tokens for i in examples.order), initial=0))
        self.response_tokens = tokens[::batch]  # [s]: response tokens of the first s steps
        self._logged = (0, time.monotonic())
        self._losses: list[float] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._logged = (-1, time.monotonic())
        with data_worker_errors(workers=self.args.dataloader_num_workers):
            return super().train(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The sum over this device batch's response tokens, divided by those of the whole batch."""
        inputs = dict(inputs)
        labels, kept = inputs.pop("labels"), inputs["logits_to_keep"]
        del inputs["shift_labels"]
        if not self._scores_some:
            del inputs["logits_to_keep"]
        outputs = model(**inputs, use_cache=False)
        logits = outputs.logits if self._scores_some else outputs.logits[:, kept]  # (B, K, V)
        total = response_loss(logits.flatten(0, 1), labels.flatten())
        # Gradients are averaged over the processes, each of which has but its share of the tokens.
        loss = total * self.accelerator.num_processes / (num_items_in_batch if num_items_in_batch is not None else labels.numel())
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking all parameters at every step costs a small model more than its step."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the entry in the state, and tell it as a Metric. Raises LossDiverged."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step = self.state.global_step
        norm = logs.get("grad_norm")
        self._refuse_divergence(logs["loss"], norm, step)
        self.tell(
            Metric(
                step=step,
                steps=self.state.max_steps,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=norm if norm is not None and math.isfinite(norm) else None,
                tokens_per_s=self._speed(step),
                memory_gib=peak_memory_gib(),
                gpu_percent=gpu_percent(),
            )
        )

    def _refuse_divergence(self, loss: float, norm: float | None, step: int) -> None:
        self._losses.append(loss)
        when, rate = f"at step {step} of {self.state.max_steps}", self.args.learning_rate
        text = ""
        if not math.isfinite(loss):
            text = f"The loss is {loss} {when}. Lower imitation.learning_rate ({rate:g}), or use fp32 or bf16."
        elif norm is not None and not math.isfinite(norm) and not self.args.fp16:  # in fp16 such a step is skipped, and the scale lowered
            text = f"The gradient is {norm} {when}. Lower imitation.learning_rate ({rate:g}), or use fp32 or bf16."
        elif (means := diverged(self._losses)) is not None:
            text = (
                f"The loss diverges {when}: it began at {means[0]:.3g}, has been {means[1]:.3g} and is {means[2]:.3g}. "
                f"Lower imitation.learning_rate ({rate:g}) or lengthen imitation.warmup."
            )
        if text:
            raise LossDiverged(text, fields={"imitation.learning_rate": text})

    def _speed(self, step: int) -> float | None:
        """Response tokens per second since the last log; None for the first, which would count the start."""
        (last, then), now = self._logged, time.monotonic()
        self._logged = (step, now)
        return (self.response_tokens[step] - self.response_tokens[last]) / (now - then) if last >= 0 else None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let all processes write the library's own save aside, rename it when it is complete, then drop the oldest."""
        work = Path(str(self.args.output_dir))
        final = work / f"checkpoint-{self.state.global_step}"
        with writing_together(final, needed=self.save_bytes + SPARE_BYTES, first=self.is_world_process_zero()) as unfinished:
            self.args.output_dir = str(unfinished)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(work)
        if not self.is_world_process_zero():
            return
        for older in saves_in(work)[:-KEPT_SAVES]:
            shutil.rmtree(older, ignore_errors=True)
        self.tell(Saved(step=self.state.global_step, steps=self.state.max_steps))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library does it, but sharded weights are gathered in the main process first."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = gathered_state(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)


@contextmanager
def writing_together(final: Path, *, needed: int, first: bool) -> Iterator[Path]:
    """`checkpoints.writing_whole` for all processes at once: the first makes the folder and gives it its name, the rest wait for that.

    What the library writes into a folder of the save's own name is moved up, and its digests are written beside it. Raises NoSpace in
    whichever process finds its disk full; that ends the others too.
    """
    if not first:
        wait_for_all()
        with full_disk_errors(final.parent):
            yield final.with_name(f".{final.name}.writing")
        wait_for_all()
        wait_for_all()
        return
    with writing_whole(final, needed=needed) as unfinished:
        wait_for_all()
        yield unfinished
        wait_for_all()
        for path in (unfinished / final.name).iterdir():
            path.rename(unfinished / path.name)
        (unfinished / final.name).rmdir()
        (unfinished / SAVE_DIGESTS).write_text(json.dumps(digests_of(unfinished)))
    sync_folder(final.parent)
    wait_for_all()


def sync_folder(folder: Path) -> None:
    """Let a new name in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Stops(TrainerCallback):
    """Asks for a stop after each step, and for a log whenever there is a save.

    Logging with each save means that no loss waits unlogged in memory: a resumed run reports the same losses.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if not last and anyone(self.should_stop()):
            control.should_save = control.should_training_stop = True
        if last:
            control.should_save = False  # the checkpoint itself is written next
        control.should_log = control.should_log or control.should_save or last


def accepts_logits_to_keep(model: Any) -> bool:
    """Whether the model can leave out the scores of positions nobody learns from."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def diverged(losses: list[float]) -> tuple[float, float, float] | None:
    """First loss, lowest and last mean over SMOOTHED_OVER logs, where the last is above the first and twice the lowest; else None."""
    if len(losses) < 2 * SMOOTHED_OVER:
        return None
    means = [fmean(losses[at : at + SMOOTHED_OVER]) for at in range(len(losses) - SMOOTHED_OVER + 1)]
    first, last = losses[0], means[-1]
    lowest = min(first, *means)
    return (first, lowest, last) if last > first and last > 2 * lowest else None


@contextmanager
def data_worker_errors(*, workers: int) -> Iterator[None]:
    """Give the death of a process that prepares batches its name: the library tells of it, or a connection to it breaks."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        broken = workers > 0 and isinstance(error, (ConnectionError, EOFError))
        if not broken and "DataLoader worker" not in str(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataWorkerDied(
            f"A process that prepares batches died ({why}). Host or shared memory may have run out: "
            "set imitation.data_workers to 0, or give the machine more of /dev/shm. The last save is kept; resume goes on from it."
        ) from error


# Saves


def saves_in(work: Path) -> list[Path]:
    """The resumable saves of a work folder, oldest first."""
    return sorted(work.glob("checkpoint-*"), key=save_step)


def is_sharded(save: Path) -> bool:
    """Whether a save was written by processes that share the weights out: only such can go on from it."""
    return any(save.glob("pytorch_model_fsdp*"))


def save_step(save: Path) -> int:
    """The step after which a save was written."""
    return int(save.name.rpartition("-")[2])


def last_whole_save(work: Path) -> tuple[Path | None, list[Path]]:
    """The newest save whose files are as they were written, and the damaged ones newer than it."""
    damaged: list[Path] = []
    for save in reversed(saves_in(work)):
        if _is_whole(save):
            return save, damaged
        damaged.append(save)
    return None, damaged


def _is_whole(save: Path) -> bool:
    try:
        written = json.loads((save / SAVE_DIGESTS).read_text())
        return bool(digests_of(save, leave_out=SAVE_DIGESTS) == written)
    except (OSError, ValueError):
        return False


# The machine


def peak_memory_gib() -> float:
    """Peak memory so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def gpu_percent() -> float | None:
    """How busy the GPU is, or None where there is none or nobody who tells."""
    if not torch.cuda.is_available():
        return None
    try:
        return float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError, OSError):
        return None
