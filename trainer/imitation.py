"""Imitation: the student is tuned on the teacher's responses, with the loss on the response tokens alone (METHOD 2).

The loop is `transformers.Trainer` with the paper's settings (`trainer.tuning`). What is ours, and where it departs from the authors' code:
1. The end token is appended to every response and learnt: padding is masked by length, never by a pad id that may be the end token.
2. All batches are planned before the first step: epoch after epoch in an order of the seed, cut into whole batches, so that a batch may
   hold the end of one epoch and the start of the next. Steps = epochs x examples / batch size, rounded up.
3. The gradient is the mean over the response tokens of the whole batch, so how the batch is cut for the device, and for how many
   devices, changes nothing but the padding. Inside a batch, examples of like length share a device batch (or are packed).
4. Resumable saves are complete or absent (written aside, then renamed), and their digests are checked before one is gone on from.
   Killed at any moment and started again, the tuning goes on from the last whole one, on a CPU to weights equal bit for bit.
5. A loss that is not a number, or diverges, ends the stage with an error instead of being averaged away.

With several processes (`accelerate launch`) each runs this module; the first of them writes and tells.
This module imports torch and transformers.Trainer: only a child process, or a test, imports it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.accelerated import device_batch_of, processes_of
from trainer.checkpoints import (
    MEND_CHECKPOINT,
    SPARE_BYTES,
    Manifest,
    find_checkpoint,
    full_disk_errors,
    require_space,
    require_whole,
    write_checkpoint,
)
from trainer.config import RunConfig
from trainer.errors import Cancelled, ConfigError, DamagedCheckpoint
from trainer.examples import (
    Encoded,
    PlannedExamples,
    by_length,
    encode_examples,
    evened,
    load_encoded,
    plan_order,
    save_encoded,
    show_batch,
    step_count,
)
from trainer.models import (
    check_method,
    check_precision,
    context_of,
    device,
    dtype_of,
    flash_attention,
    load_model,
    load_quantized,
    load_tokenizer,
    memory_errors,
    pad_id_of,
)
from trainer.preflight import preflight, require_length
from trainer.records import Example, Remark, TuningNews
from trainer.roles import CheckpointInfo
from trainer.seeds import derive_seed
from trainer.speaker import never
from trainer.together import decided_by_first, gathered_state, is_first, let_cpus_shard, main_process_first, world
from trainer.tuning import (
    KEPT_SAVES,
    Tuning,
    is_sharded,
    last_whole_save,
    save_step,
    saves_in,
    sync_folder,
    training_arguments,
)

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one imitation is made of and where: its texts, what it starts from, and the folders of its saves and its checkpoint."""

    config: RunConfig
    examples: Sequence[Example]
    iteration: int
    start: Path | None
    parent: Manifest | None
    final: Path
    saves: Path

    @property
    def fingerprint(self) -> str:
        return work_fingerprint(
            self.config,
            self.examples,
            iteration=self.iteration,
            parent=self.parent.digest if self.parent else str(self.start or ""),
        )


def imitate(
    config: RunConfig,
    examples: Sequence[Example],
    *,
    iteration: int,
    start: Path | None,
    folder: Path,
    tell: Callable[[TuningNews], None],
    should_stop: Callable[[], bool] = never,
    use_saved: bool = False,
) -> CheckpointInfo:
    """Tune the student on the examples and write `folder/iteration-N`.

    Called again after a kill or a Cancelled it goes on from its last whole save; called again when it was finished it gives the
    checkpoint that is there. Metrics of steps after the last save are then told once more.
    use_saved: make that save the checkpoint instead of tuning on.
    Raises ConfigError, LossDiverged, DataWorkerDied, OutOfMemory, NoSpace, and Cancelled after a resumable save.
    """
    work = Work(
        config=config,
        examples=sorted(examples, key=lambda example: example.instruction.key),
        iteration=iteration,
        start=start,
        parent=decided_by_first(lambda: _whole_parent(start)),
        final=folder / f"iteration-{iteration}",
        saves=folder / f".iteration-{iteration}.work",
    )
    with _alone(folder, should_stop):
        with full_disk_errors(folder):
            finished = decided_by_first(lambda: _begin(work, use_saved=use_saved))
        if finished is not None:
            return finished
        if use_saved:
            return promote_save(work)
        check_precision(config.student.precision, device())
        check_method(config.student.method)
        return _tune(work, tell if is_first() else _tell_nobody, should_stop)


@contextmanager
def _alone(folder: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other worker tunes in a run's folder: two steps of it may both find a checkpoint damaged, and tune it again."""
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_stop():
                    raise Cancelled("Stopped while another worker was tuning a student of this run.") from None
                time.sleep(LOOK_AGAIN_S)
        yield
    finally:
        os.close(handle)  # which lets go of the lock


def _whole_parent(start: Path | None) -> Manifest | None:
    """The manifest of what the tuning starts from, None where that is no checkpoint. Raises ConfigError where it is damaged or gone."""
    if start and not start.is_dir():
        raise ConfigError(f"The checkpoint {start}, which this tuning starts from, is not there any more. {MEND_CHECKPOINT}")
    return require_whole(start) if start and find_checkpoint(start) else None


def _begin(work: Work, *, use_saved: bool) -> CheckpointInfo | None:
    """The checkpoint of this very work where it is there already, and whole; else None, and the folder of the saves is ready."""
    found = _whole_checkpoint(work.final)
    if found is not None and found.work == work.fingerprint:
        shutil.rmtree(work.saves, ignore_errors=True)  # where a kill came between the checkpoint and this
        return found.info(work.final)
    _prepare_saves(work, use_saved=use_saved)
    return None


def _whole_checkpoint(path: Path) -> Manifest | None:
    """The manifest of a checkpoint, None where there is none or its files are not what was written: it will be written anew."""
    try:
        return require_whole(path) if find_checkpoint(path) else None
    except DamagedCheckpoint as error:
        log.warning("%s", error)
        return None


def _tell_nobody(news: TuningNews) -> None:
    """What every process but the first tells."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an imitation is gone about: the model and its texts, in which order, in which pieces, in how many steps."""

    tokenizer: Any
    model: Any
    encoded: Encoded
    order: list[int]
    steps: int
    packed: bool
    device_batch: int
    save_bytes: int


def _tune(work: Work, tell: Callable[[TuningNews], None], should_stop: Callable[[], bool]) -> CheckpointInfo:
    """Plan, tell what it will take, tune from the last save or the beginning, and write the checkpoint.

    Memory may run out in any of that: as the weights are loaded, as they move to the device, as the shards are gathered.
    """
    with memory_errors(memory_advice(work.config, device_batch_of(work.config, world()[1]))):
        plan = _plan(work)
        if is_first():
            _tell_beforehand(work, tell, plan)
        tuning = _tuning(work, plan, tell, should_stop)
        save = decided_by_first(lambda: _save_to_go_on_from(work, tell, sharded=tuning.is_fsdp_enabled))
        if is_first():
            _require_space(work, plan)
        tuning.train(resume_from_checkpoint=str(save) if save else None)
        step, steps = tuning.state.global_step, plan.steps
        if step < steps:
            raise Cancelled(
                f"Stopped at step {step:,} of {steps:,}. A save of step {step:,} is kept: resume goes on from it, or use it as it is."
            )
        return _write_together(work, plan, tuning)


def _plan(work: Work) -> Plan:
    config = work.config
    tokenizer = load_tokenizer(config, work.start)
    model = load_trainable(config, work.start, iteration=work.iteration)
    require_length(config, context_of(model))
    encoded = _encoded(work, tokenizer)
    packed, batch = is_packed(config, model), device_batch_of(config, world()[1])
    steps = step_count(config, len(encoded.examples), iteration=work.iteration)
    lengths = [len(example.ids) for example in encoded.examples]
    arrange = partial(evened, size=batch) if packed else by_length
    weights, moments = bytes_to_save(model)
    return Plan(
        tokenizer=tokenizer,
        model=model,
        encoded=encoded,
        order=plan_order(lengths, steps=steps, config=config, iteration=work.iteration, arrange=arrange),
        steps=steps,
        packed=packed,
        device_batch=batch,
        # A sharded save holds the weights twice: in shards to go on from, and whole to be used as they are.
        save_bytes=weights + moments + (weights if processes_of(config)[1] else 0),
    )


def _require_space(work: Work, plan: Plan) -> None:
    needed = bytes_to_save(plan.model)[0] + (KEPT_SAVES + 1) * plan.save_bytes + SPARE_BYTES - sum(map(_bytes_below, saves_in(work.saves)))
    require_space(work.final.parent, needed, purpose="Tuning with its resumable saves and a checkpoint")


def _tuning(work: Work, plan: Plan, tell: Callable[[TuningNews], None], should_stop: Callable[[], bool]) -> Tuning:
    """The loop of the library, ready to go."""
    config = work.config
    if processes_of(config)[1] and device().type == "cpu":
        let_cpus_shard()
    return Tuning(
        model=plan.model,
        arguments=training_arguments(
            config, work.saves, steps=plan.steps, iteration=work.iteration, device_batch=plan.device_batch, processes=world()[1]
        ),
        examples=PlannedExamples(plan.encoded.examples, plan.order),
        pad_id=pad_id_of(plan.tokenizer),
        packed=plan.packed,
        tell=tell,
        should_stop=should_stop,
        save_bytes=plan.save_bytes,
    )


def _write_together(work: Work, plan: Plan, tuning: Tuning) -> CheckpointInfo:
    """The checkpoint, written by the first process while the others wait."""
    losses = [entry["loss"] for entry in tuning.state.log_history if "loss" in entry]
    state = gathered_state(tuning.model) if tuning.is_fsdp_enabled else None
    model = tuning.accelerator.unwrap_model(tuning.model)
    return decided_by_first(lambda: _write(work, model, plan.tokenizer, step=plan.steps, losses=losses, state=state))


def _encoded(work: Work, tokenizer: Any) -> Encoded:
    """The examples as token ids, made once and kept beside the saves."""
    path, settings = work.saves / "tokens.safetensors", work.config.imitation
    with full_disk_errors(path.parent), main_process_first():
        encoded = load_encoded(path)
        if encoded is None:
            encoded = encode_examples(
                tokenizer, work.examples, template=work.config.student.template, max_length=settings.max_length, too_long=settings.too_long
            )
            save_encoded(path, encoded)
    return encoded


def _tell_beforehand(work: Work, tell: Callable[[TuningNews], None], plan: Plan) -> None:
    """What the tuning will take, its first batch to be read, and what was cut or left out."""
    settings, encoded = work.config.imitation, plan.encoded
    tell(preflight(work.config, plan.model, encoded, plan.order, steps=plan.steps, folder=work.final.parent))
    tell(show_batch(plan.tokenizer, work.examples, encoded, plan.order, batch_size=settings.batch_size))
    total = len(work.examples)
    if encoded.cut:
        tell(
            Remark(text=f"{encoded.cut} of {total} examples are longer than {settings.max_length} tokens and were cut: they teach no end.")
        )
    if encoded.left_out:
        tell(Remark(text=f"{encoded.left_out} of {total} examples do not fit into {settings.max_length} tokens and were left out."))


def memory_advice(config: RunConfig, device_batch: int) -> str:
    """How the sentence about too little memory ends."""
    settings = config.imitation
    return (
        f"tuning with {device_batch} examples of up to {settings.max_length} tokens on the device. Lower imitation.device_batch_size or "
        "imitation.max_length, set imitation.gradient_checkpointing, or set student.method to lora."
    )


PACKED_MODELS = frozenset(
    ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox", "smollm3")
)
"""Kinds of models that were seen not to look from one packed example into another; others do, without a word."""


def is_packed(config: RunConfig, model: Any) -> bool:
    """Whether device batches are packed: as set, or where FlashAttention makes that fast. Raises ConfigError for other models."""
    chosen, kind = config.imitation.batches, model.config.model_type
    if chosen == "packed" and kind not in PACKED_MODELS:
        text = f"A model of kind {kind} may look from one packed example into another. Set imitation.batches to grouped."
        raise ConfigError(text, fields={"imitation.batches": text})
    return chosen == "packed" or (chosen == "auto" and flash_attention() and kind in PACKED_MODELS)


_OF_THE_MACHINE = frozenset(
    ("preflight", "device_batch_size", "batches", "gradient_checkpointing", "processes", "sharding", "data_workers")
) | {"save_steps", "log_steps"}
"""Settings that say how the work is done, not what comes out: the gradient is the same but for rounding."""


def work_fingerprint(config: RunConfig, examples: Sequence[Example], *, iteration: int, parent: str) -> str:
    """One sha256 over all that decides the weights: a save with another fingerprint is of other work and is not gone on from."""
    settings = config.as_dict()
    imitation = {name: value for name, value in settings["imitation"].items() if name not in _OF_THE_MACHINE}
    told = {"student": settings["student"], "imitation": imitation, "seed": config.seed, "iteration": iteration, "parent": parent}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.instruction.key, example.instruction.prompt, example.response]).encode())
    return digest.hexdigest()


# The model


def load_trainable(config: RunConfig, start: Path | None, *, iteration: int) -> Any:
    """The student ready to be tuned: all weights in fp32, or an adapter in fp32 on a base held in the run's precision or in 4 bits."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if config.student.method == "full":
        model = load_model(config, start, dtype=torch.float32, trainable=True)
    elif config.student.method == "qlora":
        model = load_quantized(config, start)
    else:
        model = load_model(config, start, dtype=dtype_of(config.student.precision), trainable=True)
    if is_packed(config, model) and flash_attention():
        model.set_attn_implementation("flash_attention_2")
    if config.student.method == "full" or isinstance(model, PeftModel):
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


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def bytes_to_save(model: Any) -> tuple[int, int]:
    """Bytes of the weights that are saved (an adapter's alone, with LoRA), and of the optimizer's two moments."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return size, 2 * size


# Saves and the checkpoint


NO_SAVE = "There is no whole save to use: none was written, or the examples or settings are others by now. Resume instead."


def _prepare_saves(work: Work, *, use_saved: bool) -> None:
    """The folder of the resumable saves, without what a kill left half written; saves of other work are thrown away.

    Raises ConfigError where such a save is to be used: it stays, and is not what was asked for.
    """
    for half in work.saves.glob(".checkpoint-*.writing"):
        shutil.rmtree(half, ignore_errors=True)
    note = work.saves / "fingerprint"
    if not note.is_file() or note.read_text() != work.fingerprint:
        if use_saved:
            raise ConfigError(NO_SAVE)
        shutil.rmtree(work.saves, ignore_errors=True)
        work.saves.mkdir(parents=True)
        note.write_text(work.fingerprint)


def _save_to_go_on_from(work: Work, tell: Callable[[TuningNews], None], *, sharded: bool) -> Path | None:
    """The last whole save, or None to begin at the beginning; damaged ones are told and let go.

    A save's moments are whole or in shards as the processes held them, and only their like can read them back: saves of the other
    sharding are set aside, for a tuning that goes on as they were written.
    """
    others = [save for save in saves_in(work.saves) if is_sharded(save) != sharded]
    last = save_step(others[-1]) if others else 0
    _move(others, work.saves / _ASIDE[not sharded])
    _move(saves_in(work.saves / _ASIDE[sharded]), work.saves)
    save, damaged = last_whole_save(work.saves)
    before = f"step {save_step(save)}" if save else "the beginning"
    if last:
        was, now = ("without sharding", "with it") if sharded else ("by sharding", "without it")
        told = f"The save of step {last} was written {was} and this tuning goes on {now}, so it begins at {before}."
        tell(Remark(text=f"{told} The save is kept: stopped and resumed {was}, the tuning goes on from it."))
    for broken in damaged:
        tell(Remark(text=f"The save of step {save_step(broken)} is damaged: its files are not what was written. Going on from {before}."))
    _let_go(damaged)
    return save


_ASIDE = {True: "sharded", False: "unsharded"}
"""Folders for the saves that a tuning cannot go on from."""


def _move(saves: Sequence[Path], folder: Path) -> None:
    """Move saves to a folder; one of the same step that is there is older and gives way."""
    for save in saves:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(folder / save.name, ignore_errors=True)
        save.rename(folder / save.name)


def _let_go(saves: Sequence[Path]) -> None:
    for save in saves:
        shutil.rmtree(save, ignore_errors=True)


def promote_save(work: Work) -> CheckpointInfo:
    """Make the last whole save the checkpoint of the iteration. Raises ConfigError where there is none."""
    save, _ = last_whole_save(work.saves)
    aside = (last_whole_save(work.saves / name)[0] for name in _ASIDE.values())
    save = save or max(filter(None, aside), key=save_step, default=None)
    if save is None:
        raise ConfigError(NO_SAVE)
    tokenizer = load_tokenizer(work.config, work.start)
    at_save = replace(work, start=save if work.config.student.method == "full" else work.start)
    with memory_errors("the student, to write the save as its checkpoint. Use a worker with more of it, or resume instead."):
        model = load_trainable(work.config, at_save.start, iteration=work.iteration)
        if work.config.student.method != "full":
            _load_adapter(model, save)
    state = json.loads((save / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return _write(work, model, tokenizer, step=state["global_step"], losses=losses)


def _load_adapter(model: Any, save: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(save / "adapter_model.safetensors"))


def _write(
    work: Work, model: Any, tokenizer: Any, *, step: int, losses: Sequence[float], state: dict[str, Any] | None = None
) -> CheckpointInfo:
    """Write the checkpoint whole, and let go of the saves. state: the weights where the model itself holds but a shard of them."""
    base, revision = _base_of(work.config, work.start, work.parent)
    manifest = Manifest(
        config=work.config.as_dict(),
        method=work.config.student.method,
        base=base,
        revision=revision,
        iteration=work.iteration,
        step=step,
        first_loss=losses[0],
        last_loss=losses[-1],
        seed=work.config.seed,
        parent=str(work.start or ""),
        parent_digest=work.parent.digest if work.parent else "",
        work=work.fingerprint,
    )

    def save(path: Path) -> None:
        model.config.use_cache = True
        model.save_pretrained(path, **({"state_dict": state} if state is not None else {}))
        tokenizer.save_pretrained(path)

    written = write_checkpoint(work.final, manifest, save, weight_bytes=bytes_to_save(model)[0])
    sync_folder(work.final.parent)
    shutil.rmtree(work.saves, ignore_errors=True)
    return written.info(work.final)


def _base_of(config: RunConfig, start: Path | None, parent: Manifest | None) -> tuple[str, str]:
    """The model under an adapter, by name and revision: a full checkpoint is a base itself, an adapter goes on with its own."""
    if config.student.method != "full" and start is not None and (parent is None or parent.method == "full"):
        return str(start), ""
    if parent is not None and config.student.method != "full":
        return parent.base, parent.revision
    return config.student.model, config.student.revision
