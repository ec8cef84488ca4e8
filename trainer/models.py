"""Students by name: weights and tokenizer from the Hub, a local folder or a checkpoint, or a small Llama from random weights.

Safetensors only, and no code from the Hub. torch and transformers are imported inside the functions: this module is cheap to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoints import MEND_CHECKPOINT, find_checkpoint
from trainer.config import SCRATCH_MODEL, RunConfig
from trainer.errors import ConfigError, OutOfMemory
from trainer.seeds import derive_seed

if TYPE_CHECKING:
    import torch

SCRATCH_CONTEXT = 2048
"""Context of the student made from random weights, in tokens (bytes)."""

SCRATCH_CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The scratch student's own chat form: a text and a line end. A third of the paper form's bytes, so a third of the time of a small step."""

SOURCES_VARIABLE = "LIONWEB_STUDENT_SOURCES"
"""Environment variable with the sources students may come from, as patterns of Hub names and folders with spaces between; empty: any."""

ADAPTER_CONFIG = "adapter_config.json"

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")
_NO_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


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
    if start is None:
        require_name(name)
    with loading_errors(name, is_checkpoint=start is not None):
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
    tuned_further = trainable and config.student.method != "full"
    with loading_errors(str(start), is_checkpoint=True):
        model = PeftModel.from_pretrained(base, str(start), is_trainable=tuned_further)
    return model if tuned_further else model.merge_and_unload()


def load_quantized(config: RunConfig, start: Path | None) -> Any:
    """The base of a student in 4 bits on this process's card, for an adapter to be tuned on it; with the adapter of `start`, if any."""
    import torch
    from transformers import BitsAndBytesConfig

    compute = dtype_of(config.student.precision)
    make: Any = BitsAndBytesConfig  # untyped in the library
    quantized = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
    options = {"quantization_config": quantized, "device_map": {"": torch.cuda.current_device()}}
    manifest = find_checkpoint(start) if start else None
    from peft import PeftModel, prepare_model_for_kbit_training

    prepare: Any = prepare_model_for_kbit_training  # untyped in the library
    if manifest is None or manifest.method == "full":
        name, revision = (str(start), "") if start else (config.student.model, config.student.revision)
        return prepare(load_base(config, name, revision, dtype=compute, **options), use_gradient_checkpointing=False)
    base = prepare(load_base(config, manifest.base, manifest.revision, dtype=compute, **options), use_gradient_checkpointing=False)
    with loading_errors(str(start), is_checkpoint=True):
        return PeftModel.from_pretrained(base, str(start), is_trainable=True)


def check_method(method: str) -> None:
    """Raise ConfigError where this machine cannot hold a base in 4 bits and the method wants that."""
    import torch

    if method != "qlora" or (torch.cuda.is_available() and _installed("bitsandbytes")):
        return
    missing = "the package bitsandbytes (pip install bitsandbytes)" if torch.cuda.is_available() else "a CUDA card"
    text = f"QLoRA needs {missing}, which this worker does not have. Set student.method to lora."
    raise ConfigError(text)


def flash_attention() -> bool:
    """Whether attention over packed examples has a fast kernel here."""
    import torch

    return torch.cuda.is_available() and _installed("flash_attn")


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def load_base(config: RunConfig, name: str, revision: str, *, dtype: torch.dtype, **options: Any) -> Any:
    """A whole model by name: scratch-llama, a local folder or a Hub name. Safetensors only, and no code from the Hub."""
    if name == SCRATCH_MODEL:
        return scratch_llama(config).to(dtype)
    is_checkpoint = name != config.student.model  # of ours, or what an adapter of ours names as its base
    if not is_checkpoint:
        require_name(name)
        require_own_weights(name, revision)
    from transformers import AutoModelForCausalLM

    with loading_errors(name, is_checkpoint=is_checkpoint and Path(name).is_absolute()):
        return AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, **_at(revision), **options
        )


def empty_model(config: RunConfig) -> Any:
    """The base student without its weights (on the meta device): its shape, and its context, at no cost. Raises ConfigError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name, revision = config.student.model, config.student.revision
    if name == SCRATCH_MODEL:
        return scratch_llama(config)
    require_name(name)
    with loading_errors(name), torch.device("meta"):
        shape = AutoConfig.from_pretrained(name, trust_remote_code=False, **_at(revision))
        make: Any = AutoModelForCausalLM  # untyped in the library
        return make.from_config(shape, trust_remote_code=False)


def require_name(name: str) -> None:
    """Raise ConfigError unless it is a folder that holds a model or a name the Hub could know, from a source that is allowed."""
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise _no_student(name, "no such folder")
    allowed = os.environ.get(SOURCES_VARIABLE, "").split()
    if allowed and not any(fnmatchcase(_source_of(name), pattern) for pattern in allowed):
        text = f"Students from {name!r} are not allowed on this worker. {SOURCES_VARIABLE} allows: {', '.join(allowed)}."
        raise ConfigError(text)
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file():  # with a config.json beside it too: the library would put the adapter into the model
        raise _only_an_adapter(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        text = f"The folder {name} holds no model (no config.json). Set student.model to one that does, a Hub name or {SCRATCH_MODEL}."
        raise ConfigError(text, fields={"student.model": text})


def require_own_weights(name: str, revision: str) -> None:
    """Raise ConfigError where the Hub has an adapter by this name: the library would load the base that it names, allowed or not."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if Path(name).is_dir():  # looked at by `require_name`
        return
    with loading_errors(name):
        found = find_adapter_config_file(name, revision=revision or None)
    if found:
        raise _only_an_adapter(name)


def _only_an_adapter(name: str) -> ConfigError:
    text = f"{name} is an adapter and no whole model. Merge it into its base and name that: a checkpoint's page exports merged weights."
    return ConfigError(text, fields={"student.model": text})


def _source_of(name: str) -> str:
    """A folder by its real path, so that no link leads out of what is allowed; a Hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


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
def loading_errors(name: str, *, is_checkpoint: bool = False) -> Iterator[None]:
    """Turn what the libraries say of a missing, refused or unsafe model into one sentence for whoever set up the run.

    is_checkpoint: the name is the folder of a checkpoint of ours, which nobody chose by a setting.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if "connect" in str(error).lower() and not Path(name).exists():
            text = f"The Hub could not be reached for {name!r}, and this worker has no copy. Mend its network, or name a local folder."
            raise ConfigError(text) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if is_checkpoint:
            raise ConfigError(f"The checkpoint {name} cannot be loaded ({reason}). {MEND_CHECKPOINT}") from error
        raise _no_student(name, reason) from error


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
    """How many tokens the model reads and writes in all; whatever memory holds where its config names no limit."""
    config = model.config.get_text_config()
    return next((int(known) for name in _CONTEXT_NAMES if (known := getattr(config, name, None))), 2**31 - 1)


def pad_id_of(tokenizer: Any) -> int:
    """An id to fill batches with. It is never looked at: padding is masked by length."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


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
