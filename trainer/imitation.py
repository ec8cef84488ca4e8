"""Imitation: the student is tuned on the teacher's responses, with the loss on the response tokens alone (METHOD 2).

The loop is `transformers.Trainer` with the paper's settings. What is ours, and where it departs from the authors' code:
1. The end token is appended to every response and learnt: padding is masked by length, never by a pad id that may be the end token.
2. All batches are planned before the first step: epoch after epoch in an order of the seed, cut into whole batches, so that a batch may
   hold the end of one epoch and the start of the next. Steps = epochs x examples / batch size, rounded up.
3. Inside a batch, examples of like length share a device batch. The gradient is the mean over the response tokens of the whole
   batch, so how the batch is cut for the device changes nothing but the padding.
4. Resumable saves are complete or absent (written aside, then renamed). Killed at any moment and started again, the tuning goes on from the
   last one, on a CPU to weights equal bit for bit.
5. A loss that is not a number ends the stage with an error instead of being averaged away.

This module imports torch and transformers.Trainer: only a child process, or a test, imports it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from trainer.checkpoints import SPARE_BYTES, Manifest, find_checkpoint, require_space, write_checkpoint, writing_whole
from trainer.config import RunConfig
from trainer.encoding import encode_prompts, encode_texts
from trainer.errors import Cancelled, ConfigError
from trainer.models import check_precision, context_of, device, dtype_of, load_model, load_tokenizer, memory_errors, pad_id_of
from trainer.records import Example, Metric, TuningNews
from trainer.roles import CheckpointInfo
from trainer.seeds import derive_seed, stream
from trainer.speaker import never

log = logging.getLogger(__name__)

IGNORE_INDEX = -100
"""Label of a position that carries no loss."""

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm, as the authors' code does by its library's default."""


class LossDiverged(ConfigError):
    """The loss is no longer a number: whoever set up the run has to choose a smaller learning rate or a wider precision."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids (int32, prompt then response); the first `prompt_length` of them carry no loss."""

    ids: Tensor
    prompt_length: int

    @property
    def response_tokens(self) -> int:
        return len(self.ids) - self.prompt_length


class EncodedExamples(Dataset[EncodedExample]):
    """The examples in the order of the plan; one pass over it is the whole tuning."""

    def __init__(self, examples: Sequence[EncodedExample], order: Sequence[int]) -> None:
        self.examples = examples
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int) -> EncodedExample:
        return self.examples[self.order[at]]


def imitate(
    config: RunConfig,
    examples: Sequence[Example],
    *,
    iteration: int,
    start: Path | None,
    folder: Path,
    tell: Callable[[TuningNews], None],
    should_stop: Callable[[], bool] = never,
) -> CheckpointInfo:
    """Tune the student on the examples and write `folder/iteration-N`.

    Called again after a kill or a Cancelled it goes on from its last save; called again when it was finished it gives the
    checkpoint that is there. Metrics of steps after the last save are then reported once more.
    Raises ConfigError, LossDiverged, OutOfMemory, NoSpace, and Cancelled after a resumable save.
    """
    final, work = folder / f"iteration-{iteration}", folder / f".iteration-{iteration}.work"
    examples = sorted(examples, key=lambda example: example.instruction.key)
    parent = find_checkpoint(start) if start else None
    fingerprint = work_fingerprint(config, examples, iteration=iteration, parent=parent.digest if parent else str(start or ""))
    finished = find_checkpoint(final)
    if finished is not None and finished.work == fingerprint:
        return finished.info(final)
    check_precision(config.student.precision, device())

    tokenizer = load_tokenizer(config, start)
    model = load_trainable(config, start, iteration=iteration)
    encoded = encode_examples(tokenizer, examples, template=config.student.template, max_length=_longest(config, model))
    steps = step_count(config, len(encoded), iteration=iteration)
    order = plan_order([len(example.ids) for example in encoded], steps=steps, config=config, iteration=iteration)
    weights, moments = _bytes_to_save(model)
    require_space(folder, weights + 2 * (weights + moments) + SPARE_BYTES, purpose="Tuning with two resumable saves and a checkpoint")

    _prepare_work(work, fingerprint)
    tuning = Tuning(
        model=model,
        arguments=training_arguments(config, work, steps=steps, iteration=iteration),
        examples=EncodedExamples(encoded, order),
        pad_id=pad_id_of(tokenizer),
        tell=tell,
        should_stop=should_stop,
        save_bytes=weights + moments,
    )
    settings = config.imitation
    advice = f"tuning with {settings.device_batch_size} examples of up to {settings.max_length} tokens on the device. " + (
        "Lower imitation.device_batch_size or imitation.max_length, or set student.method to lora."
    )
    with memory_errors(advice):
        tuning.train(resume_from_checkpoint=_last_save(work))
    if tuning.state.global_step < steps:
        raise Cancelled(f"Stopped at step {tuning.state.global_step} of {steps}. The state is saved; the imitation can go on from there.")

    losses = [entry["loss"] for entry in tuning.state.log_history if "loss" in entry]
    manifest = Manifest(
        config=config.as_dict(),
        method=config.student.method,
        base=_base_of(config, start, parent)[0],
        revision=_base_of(config, start, parent)[1],
        iteration=iteration,
        step=steps,
        first_loss=losses[0],
        last_loss=losses[-1],
        seed=config.seed,
        parent=str(start or ""),
        parent_digest=parent.digest if parent else "",
        work=fingerprint,
    )

    def save(path: Path) -> None:
        model.config.use_cache = True
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    written = write_checkpoint(final, manifest, save, weight_bytes=weights)
    shutil.rmtree(work, ignore_errors=True)
    return written.info(final)


def work_fingerprint(config: RunConfig, examples: Sequence[Example], *, iteration: int, parent: str) -> str:
    """One sha256 over all that decides the weights: a save with another fingerprint is of other work and is not gone on from."""
    student, imitation = config.as_dict()["student"], config.as_dict()["imitation"]
    told = {"student": student, "imitation": imitation, "seed": config.seed, "iteration": iteration, "parent": parent}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.instruction.key, example.instruction.prompt, example.response]).encode())
    return digest.hexdigest()


# The model and the data


def load_trainable(config: RunConfig, start: Path | None, *, iteration: int) -> Any:
    """The student ready to be tuned: all weights in fp32, or an adapter in fp32 on a base held in the run's precision."""
    if config.student.method == "full":
        return load_model(config, start, dtype=torch.float32, trainable=True)
    from peft import LoraConfig, PeftModel, get_peft_model

    model = load_model(config, start, dtype=dtype_of(config.student.precision), trainable=True)
    if isinstance(model, PeftModel):
        return model
    lora = LoraConfig(
        r=config.student.lora_rank,
        lora_alpha=int(config.student.lora_alpha) if config.student.lora_alpha.is_integer() else config.student.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.student.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "lora", iteration))
        return get_peft_model(model, lora)


def _base_of(config: RunConfig, start: Path | None, parent: Manifest | None) -> tuple[str, str]:
    """The model under an adapter, by name and revision: a full checkpoint is a base itself, an adapter goes on with its own."""
    if config.student.method == "lora" and start is not None and (parent is None or parent.method == "full"):
        return str(start), ""
    if parent is not None and config.student.method == "lora":
        return parent.base, parent.revision
    return config.student.model, config.student.revision


def encode_examples(tokenizer: Any, examples: Sequence[Example], *, template: str, max_length: int) -> list[EncodedExample]:
    """Each example as prompt, response and end token, cut from the right at `max_length` tokens.

    An example whose prompt fills the whole length teaches nothing: it is left out and counted in the log.
    Raises ConfigError when that leaves none.
    """
    prompts = encode_prompts(tokenizer, [example.instruction for example in examples], template=template)
    responses = encode_texts(tokenizer, [example.response for example in examples], end=[tokenizer.eos_token_id])
    encoded = [
        EncodedExample(torch.tensor((prompt + response)[:max_length], dtype=torch.int32), len(prompt))
        for prompt, response in zip(prompts, responses, strict=True)
        if len(prompt) < max_length
    ]
    if not encoded:
        if not examples:
            raise ConfigError("There are no examples to tune on: no instruction of the train pool has a usable response.")
        text = (
            f"All {len(examples)} prompts fill the {max_length} tokens of an example, so nothing can be learnt. Raise imitation.max_length."
        )
        raise ConfigError(text, fields={"imitation.max_length": text})
    left_out = len(examples) - len(encoded)
    if left_out:
        log.warning("%d of %d examples left out: their prompts fill all %d tokens.", left_out, len(examples), max_length)
    return encoded


def collate(examples: Sequence[EncodedExample], *, pad_id: int) -> dict[str, Tensor]:
    """One device batch, right-padded to its longest example.

    Gives input_ids (B, T) and labels (B, T), IGNORE_INDEX over prompt and padding. There is no attention mask: under causal attention no
    token sees the padding to its right, and without a mask the faster kernels apply.
    """
    width = max(len(example.ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    labels = torch.full((len(examples), width), IGNORE_INDEX, dtype=torch.int64)
    for row, example in enumerate(examples):
        end = len(example.ids)
        input_ids[row, :end] = example.ids
        labels[row, example.prompt_length : end] = example.ids[example.prompt_length :]
    return {"input_ids": input_ids, "labels": labels}


def step_count(config: RunConfig, examples: int, *, iteration: int) -> int:
    """Steps of an imitation: as set for iteration 0 or the later ones, else as many as the epochs make."""
    settings = config.imitation
    chosen = settings.first_steps if iteration == 0 else settings.steps
    return chosen or max(1, math.ceil(settings.epochs * examples / settings.batch_size))


def plan_order(lengths: Sequence[int], *, steps: int, config: RunConfig, iteration: int) -> list[int]:
    """Positions of the examples in the order they are learnt, steps x batch_size of them; sorted by length inside each batch."""
    batch = config.imitation.batch_size
    needed = steps * batch
    order: list[int] = []
    for epoch in range(math.ceil(needed / len(lengths))):
        positions = list(range(len(lengths)))
        stream(config.seed, "imitation", iteration, epoch).shuffle(positions)
        order += positions
    batches = (order[at : at + batch] for at in range(0, needed, batch))
    return [position for positions in batches for position in sorted(positions, key=lambda i: lengths[i])]


def _longest(config: RunConfig, model: Any) -> int:
    return min(config.imitation.max_length, context_of(model))


def _bytes_to_save(model: Any) -> tuple[int, int]:
    """Bytes of the weights that are saved (an adapter's alone, with LoRA), and of the optimizer's two moments."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return size, 2 * size


# The loop


def training_arguments(config: RunConfig, work: Path, *, steps: int, iteration: int) -> TrainingArguments:
    """The paper's settings in the words of transformers. The order of the data is planned, so nothing here shuffles."""
    settings, where = config.imitation, device()
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.device_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.device_batch_size,
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
        use_cpu=where.type == "cpu",
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
        dataloader_num_workers=0,
        dataloader_pin_memory=where.type == "cuda",
    )
    # One process drives one device; the library would otherwise spread a batch over every visible GPU.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def warmup_steps(steps: int, *, share: float) -> int:
    """Steps of warm-up: the share, rounded up; none where it is less than a step, for the first step of a warm-up learns nothing."""
    return math.ceil(steps * share) if steps * share >= 1 else 0


class Tuning(Trainer):
    """transformers.Trainer over a planned order, with Metric records out and saves that are complete or absent."""

    def __init__(
        self,
        *,
        model: Any,
        arguments: TrainingArguments,
        examples: EncodedExamples,
        pad_id: int,
        tell: Callable[[TuningNews], None],
        should_stop: Callable[[], bool],
        save_bytes: int,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=lambda batch: collate(batch, pad_id=pad_id),
            callbacks=[_Stops(should_stop)],
        )
        self.remove_callback(PrinterCallback)
        self.tell = tell
        self.save_bytes = save_bytes
        batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        tokens = list(accumulate((examples.examples[i].response_tokens for i in examples.order), initial=0))
        self.response_tokens = tokens[::batch]  # [s]: response tokens of the first s steps
        self._logged = (0, time.monotonic())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._logged = (-1, time.monotonic())
        return super().train(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking all parameters at every step costs a small model more than its step."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the entry in the state, and tell it as a Metric. Raises LossDiverged."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step = self.state.global_step
        if not math.isfinite(logs["loss"]):
            when, rate = f"at step {step} of {self.state.max_steps}", self.args.learning_rate
            text = f"The loss is {logs['loss']} {when}. Lower imitation.learning_rate ({rate:g}), or use fp32 or bf16."
            raise LossDiverged(text, fields={"imitation.learning_rate": text})
        norm = logs.get("grad_norm")
        self.tell(
            Metric(
                step=step,
                steps=self.state.max_steps,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=norm if norm is not None and math.isfinite(norm) else None,
                tokens_per_s=self._speed(step),
                memory_gib=peak_memory_gib(),
            )
        )

    def _speed(self, step: int) -> float | None:
        """Response tokens per second since the last log; None for the first, which would count the start."""
        (last, then), now = self._logged, time.monotonic()
        self._logged = (step, now)
        return (self.response_tokens[step] - self.response_tokens[last]) / (now - then) if last >= 0 else None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the library's own save aside, rename it when it is complete, then drop the older ones."""
        work = Path(str(self.args.output_dir))
        final = work / f"checkpoint-{self.state.global_step}"
        with writing_whole(final, needed=self.save_bytes + SPARE_BYTES) as unfinished:
            self.args.output_dir = str(unfinished)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(work)
            for path in (unfinished / final.name).iterdir():
                path.rename(unfinished / path.name)
        for older in work.glob("checkpoint-*"):
            if older != final:
                shutil.rmtree(older, ignore_errors=True)


class _Stops(TrainerCallback):
    """Asks for a stop after each step, and for a log whenever there is a save.

    Logging with each save means that no loss waits unlogged in memory: a resumed run reports the same losses.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if self.should_stop() and not last:
            control.should_save = control.should_training_stop = True
        if last:
            control.should_save = False  # the checkpoint itself is written next
        control.should_log = control.should_log or control.should_save or last


def _prepare_work(work: Path, fingerprint: str) -> None:
    """The folder of the resumable saves; saves of other work are thrown away."""
    note = work / "fingerprint"
    if not note.is_file() or note.read_text() != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(fingerprint)


def _last_save(work: Path) -> str | None:
    saves = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return str(saves[-1]) if saves else None


def peak_memory_gib() -> float:
    """Peak memory so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
