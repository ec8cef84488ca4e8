"""The student: an open model that is tuned by `trainer.imitation` and answers here, in batches that a resume repeats exactly.

Departures from the authors' inference code, which asks one prompt at a time and keeps nothing until the end:
1. Prompts are sorted by length into fixed batches over the whole list. The plan depends on the list alone, so a resumed stage
   works through the same batches and gets the same texts.
2. Sampling is by Gumbel noise from a generator of each item's own: what an item draws depends on its seed, not on its neighbours.
3. No top-k: the whole distribution at the temperature. (Library defaults would cut it at the 50 likeliest tokens.)
4. No new [PAD] token. Padding is masked by length, so any id may stand there and the embedding keeps its size.
5. Text that looks like a special token inside an instruction is read as plain text in the paper's prompt form.

torch and transformers are imported inside the functions: this module is cheap to import.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoints import find_checkpoint, read_checkpoint
from trainer.config import SCRATCH_MODEL, RunConfig
from trainer.errors import Cancelled, ConfigError, OutOfMemory
from trainer.records import BenchmarkItem, Example, Instruction, Metric, Response
from trainer.roles import CheckpointInfo
from trainer.seeds import derive_seed
from trainer.text import storable

if TYPE_CHECKING:
    import torch

SCRATCH_CONTEXT = 2048
"""Context of the student made from random weights, in tokens (bytes)."""

SCRATCH_CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The scratch student's own chat form: a text and a line end. A third of the paper form's bytes, so a third of the time of a small step."""

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_NO_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def never() -> bool:
    """The should_stop of a student nobody stops."""
    return False


class LocalStudent:
    """A student in this process; implements `roles.Student`. The model is loaded when it is first asked.

    folder: where checkpoints go; start: the checkpoint to begin from, None for the base student.
    iteration: part of the seed of every sampled response. should_stop is asked between steps; a True raises Cancelled.
    """

    def __init__(
        self, config: RunConfig, folder: Path, start: Path | None = None, *, iteration: int = 0, should_stop: Callable[[], bool] = never
    ) -> None:
        self.config = config
        self.folder = folder
        self.start = start
        self.iteration = iteration
        self.should_stop = should_stop
        self._speaker: Speaker | None = None

    def imitate(self, examples: Sequence[Example], *, iteration: int, on_metric: Callable[[Metric], None]) -> CheckpointInfo:
        """Tune on the examples, save a checkpoint in `folder`, and go on from it. See `trainer.imitation.imitate` for the errors."""
        from trainer.imitation import imitate

        info = imitate(
            self.config,
            examples,
            iteration=iteration,
            start=self.start,
            folder=self.folder,
            on_metric=on_metric,
            should_stop=self.should_stop,
        )
        self.start, self.iteration, self._speaker = info.path, iteration, None
        return info

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        """Answer each instruction not in `done`, a whole batch at a time.

        A batch with anything missing is generated whole, as it would have been at first, and only the missing responses are kept.
        A prompt longer than the model's context becomes a Response with a failure. Raises OutOfMemory, ConfigError, Cancelled.
        """
        seeds = {item.key: derive_seed(self.config.seed, "respond", self.iteration, item.key) for item in instructions}
        self._answer_all(instructions, done=done, temperature=self.config.respond.temperature, seeds=seeds, keep=keep)

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        """Answer the items not in `done` greedily, in the same fixed batches; a prompt that does not fit gets an empty reply."""
        by_key = {item.key: item for item in items}
        instructions = [Instruction(key=item.key, text=item.prompt) for item in items]

        def keep_replies(responses: list[Response]) -> None:
            keep([(by_key[response.instruction], response.text) for response in responses])

        self._answer_all(instructions, done=done, temperature=0.0, seeds={}, keep=keep_replies)

    def _answer_all(
        self,
        instructions: Sequence[Instruction],
        *,
        done: frozenset[str],
        temperature: float,
        seeds: dict[str, int],
        keep: Callable[[list[Response]], None],
    ) -> None:
        if all(item.key in done for item in instructions):
            return
        speaker = self.speaker
        settings = self.config.respond
        prompts = encode_prompts(speaker.tokenizer, instructions, template=self.config.student.template)
        too_long = [i for i, prompt in enumerate(prompts) if len(prompt) >= speaker.context]
        refused = [_refuse(instructions[i], len(prompts[i]), speaker.context) for i in too_long if instructions[i].key not in done]
        if refused:
            keep(refused)
        fitting = sorted(set(range(len(prompts))) - set(too_long))
        for batch in plan_batches([len(prompts[i]) for i in fitting], settings.batch_size):
            batch = [fitting[i] for i in batch]
            keys = [instructions[i].key for i in batch]
            if all(key in done for key in keys):
                continue
            with memory_errors(f"a batch of {len(batch)} responses. Lower respond.batch_size or respond.max_new_tokens."):
                replies = speaker.generate(
                    [prompts[i] for i in batch],
                    max_new_tokens=settings.max_new_tokens,
                    temperature=temperature,
                    seeds=[seeds.get(key, 0) for key in keys],
                    should_stop=self.should_stop,
                )
            responses = [Response(instruction=key, text=text, tokens=tokens) for key, (text, tokens) in zip(keys, replies, strict=True)]
            keep([response for response in responses if response.instruction not in done])

    @property
    def speaker(self) -> Speaker:
        """The loaded model, ready to answer."""
        if self._speaker is None:
            with memory_errors(f"the student {self.config.student.model}. Choose a smaller one, or a device with more memory."):
                self._speaker = load_speaker(self.config, self.start)
        return self._speaker


def _refuse(instruction: Instruction, tokens: int, context: int) -> Response:
    failure = f"The prompt is {tokens} tokens long; the student reads at most {context - 1} and needs one to answer."
    return Response(instruction=instruction.key, text="", failure=failure)


def plan_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions in batches of `size`, longest first, so that a batch that does not fit in memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[at : at + size] for at in range(0, len(order), size)]


# Prompts


def encode_prompts(tokenizer: Any, instructions: Sequence[Instruction], *, template: str) -> list[list[int]]:
    """Token ids of each prompt, in the paper's form or the model's own chat form. Raises ConfigError where there is no chat form."""
    if template == "paper":
        from trainer.prompts import student_prompt

        return encode_texts(tokenizer, [student_prompt(instruction) for instruction in instructions], start=start_ids(tokenizer))
    if not tokenizer.chat_template:
        text = "This student's tokenizer has no chat template. Set student.template to 'paper'."
        raise ConfigError(text, fields={"student.template": text})
    turns = [[{"role": "user", "content": instruction.prompt}] for instruction in instructions]
    texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []


def encode_texts(tokenizer: Any, texts: Sequence[str], *, start: Sequence[int] = (), end: Sequence[int] = ()) -> list[list[int]]:
    """Token ids of plain texts, between `start` and `end`; no text can forge a special token."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [[*start, *ids, *end] for ids in encoded]


def start_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: the BOS id or nothing."""
    ids = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def byte_tokenizer() -> Any:
    """The tokenizer of the scratch student: ids 0-255 are bytes, then <s>, </s> and <pad>. Any tool can load it back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast  # untyped in the library

    specials = {"<s>": 256, "</s>": 257, "<pad>": 258}
    core = Tokenizer(models.BPE(vocab={**_byte_letters(), **specials}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return make(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=SCRATCH_CONTEXT,
        chat_template=SCRATCH_CHAT,
    )


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte: itself where it prints, else one from 256 up."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in prints]
    return {chr(byte) if byte in prints else chr(256 + others.index(byte)): byte for byte in range(256)}


# Models


def device() -> torch.device:
    """The device the student lives on: the first GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_precision(precision: str, where: torch.device) -> None:
    """Raise ConfigError where the device cannot hold weights or compute in this precision."""
    import torch

    text = ""
    if precision == "fp16" and where.type == "cpu":
        text = "A CPU cannot tune in fp16. Set student.precision to fp32 (or bf16, which is slower on most CPUs)."
    elif precision == "bf16" and where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        text = f"{torch.cuda.get_device_name()} cannot compute in bf16. Set student.precision to fp16."
    if text:
        raise ConfigError(text, fields={"student.precision": text})


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of a precision's name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def load_tokenizer(config: RunConfig, start: Path | None) -> Any:
    """The tokenizer of a checkpoint or of the base student. Raises ConfigError where there is none, or it has no end token."""
    no_progress_bars()
    if start is None and config.student.model == SCRATCH_MODEL:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    name, revision = (str(start), "") if start else (config.student.model, config.student.revision)
    with loading_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **_at(revision))
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"The tokenizer of {name} has no end token, so the student could not learn to stop. Choose another student.")
    return tokenizer


def no_progress_bars() -> None:
    """The library's bars for loading and saving weights would run through what the command line prints."""
    from transformers.utils import logging as transformers_logging

    disable: Any = transformers_logging.disable_progress_bar  # untyped in the library
    disable()


def load_model(config: RunConfig, start: Path | None, *, dtype: torch.dtype, trainable: bool = False) -> Any:
    """The weights of a checkpoint or of the base student, on the CPU.

    An adapter is loaded on the base its checkpoint names; it stays an adapter when it is to be tuned further as one, and is merged
    into the base for everything else. Raises ConfigError where there is no such model.
    """
    manifest = find_checkpoint(start) if start else None
    if start is None or manifest is None:
        return load_base(config, str(start) if start else config.student.model, "" if start else config.student.revision, dtype=dtype)
    if manifest.method == "full":
        return load_base(config, str(start), "", dtype=dtype)
    from peft import PeftModel

    base = load_base(config, manifest.base, manifest.revision, dtype=dtype)
    with loading_errors(str(start)):
        model = PeftModel.from_pretrained(base, str(start), is_trainable=trainable and config.student.method == "lora")
    return model if trainable and config.student.method == "lora" else model.merge_and_unload()


def load_base(config: RunConfig, name: str, revision: str, *, dtype: torch.dtype) -> Any:
    """A whole model by name: scratch-llama, a local folder or a Hub name. Safetensors only, and no code from the Hub."""
    if name == SCRATCH_MODEL:
        return scratch_llama(config).to(dtype)
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise _no_student(name, "no such folder")
    from transformers import AutoModelForCausalLM

    with loading_errors(name):
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False, **_at(revision))


def scratch_llama(config: RunConfig) -> Any:
    """A small Llama over bytes from random weights, the same for the same config seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, heads = config.student.scratch_width, config.student.scratch_heads
    shape = LlamaConfig(
        vocab_size=259,
        hidden_size=width,
        intermediate_size=-(-8 * width // 3 // 8) * 8,  # 8/3 of the width, as Llama has it, rounded up to a multiple of 8
        num_hidden_layers=config.student.scratch_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=SCRATCH_CONTEXT,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "student"))
        return LlamaForCausalLM(shape)


def _at(revision: str) -> dict[str, str]:
    return {"revision": revision} if revision else {}


def _no_student(name: str, reason: str) -> ConfigError:
    text = f"There is no student {name!r} ({reason}). Set student.model to a Hub name, a local folder or {SCRATCH_MODEL}."
    return ConfigError(text, fields={"student.model": text})


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn what the libraries say of a missing, refused or unsafe model into one sentence for whoever set up the run."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise _no_student(name, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__) from error


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn the ways a device or a host runs out of memory into OutOfMemory; `what` ends the sentence and says what to lower."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"There is not enough memory for {what}") from error
    except RuntimeError as error:
        if any(word in str(error).lower() for word in _NO_MEMORY_WORDS):
            raise OutOfMemory(f"There is not enough memory for {what}") from error
        raise


def context_of(model: Any) -> int:
    """How many tokens the model reads and writes in all."""
    return int(getattr(model.config, "max_position_embeddings", None) or 2**31 - 1)


def pad_id_of(tokenizer: Any) -> int:
    """An id to fill batches with. It is never looked at: padding is masked by length."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


# Answers


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A loaded model that answers batches of prompts. context: in tokens, prompt and answer together."""

    model: Any
    tokenizer: Any
    context: int
    stop_ids: tuple[int, ...]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        should_stop: Callable[[], bool] = never,
    ) -> list[tuple[str, int]]:
        """The text, stripped, and the number of new tokens (the end token left out) for each prompt of one batch.

        temperature 0: greedy. Nothing is written beyond the context. Raises Cancelled when asked to stop half-way.
        """
        import torch
        from transformers import GenerationConfig

        width = max(len(prompt) for prompt in prompts)
        pad = pad_id_of(self.tokenizer)
        input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])  # (B, T), left-padded
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        make: Any = GenerationConfig  # untyped in the library
        settings = make(
            max_new_tokens=min(max_new_tokens, self.context - width), do_sample=False, pad_token_id=pad, eos_token_id=list(self.stop_ids)
        )
        with torch.inference_mode():
            output = self.model.generate(
                input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                logits_processor=[gumbel_noise(seeds, temperature)] if temperature > 0 else [],
                stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), should_stop(), device=ids.device)],
            )
        if should_stop():
            raise Cancelled("Stopped while the student was answering. What is kept stays kept; the stage can go on later.")
        return [self._read(row) for row in output[:, width:].tolist()]

    def _read(self, ids: list[int]) -> tuple[str, int]:
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return storable(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip(), end


def gumbel_noise(seeds: Sequence[int], temperature: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor after which the likeliest token is a sample at the temperature.

    Row i draws from a generator of its own seed, on the CPU: the same numbers whatever the device and whoever shares the batch.
    """
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape)  # (B, V)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / temperature - noise.log_().to(scores.device)

    return add_noise


def load_speaker(config: RunConfig, start: Path | None) -> Speaker:
    """Load a checkpoint, or the base student, for answering. Raises ConfigError where that is not possible."""
    from transformers import GenerationConfig

    if start is not None and not start.is_dir():
        read_checkpoint(start)  # says what is missing
    where = device()
    check_precision(config.student.precision, where)
    tokenizer = load_tokenizer(config, start)
    model = load_model(config, start, dtype=dtype_of(config.student.precision)).to(where).eval()
    known = model.generation_config.eos_token_id if model.generation_config else None
    listed = known if isinstance(known, list) else [known]
    stop_ids = sorted({int(i) for i in (*listed, tokenizer.eos_token_id) if i is not None})
    # A model's own sampling defaults (temperature, top-k, penalties) would otherwise be mixed into ours.
    make: Any = GenerationConfig  # untyped in the library
    model.generation_config = make(pad_token_id=pad_id_of(tokenizer), eos_token_id=stop_ids)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Speaker(model=model, tokenizer=tokenizer, context=context_of(model), stop_ids=tuple(stop_ids))
