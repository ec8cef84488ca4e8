"""Texts as the student reads them: prompts in the paper's form or the model's own chat form, responses, and their token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.errors import ConfigError
from trainer.records import Instruction


def encode_prompts(tokenizer: Any, instructions: Sequence[Instruction], *, template: str) -> list[list[int]]:
    """Token ids of each prompt, in the paper's form or the model's own chat form. Raises ConfigError where that fails."""
    if template == "paper":
        from trainer.prompts import student_prompt

        return encode_texts(tokenizer, [student_prompt(instruction) for instruction in instructions], start=start_ids(tokenizer))
    if not tokenizer.chat_template:
        text = "This student's tokenizer has no chat template. Set student.template to 'paper'."
        raise ConfigError(text, fields={"student.template": text})
    from jinja2 import TemplateError

    turns = [[{"role": "user", "content": instruction.prompt}] for instruction in instructions]
    try:
        texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    except TemplateError as error:
        text = f"This student's chat template fails ({error}). Mend its tokenizer, or set student.template to 'paper'."
        raise ConfigError(text, fields={"student.template": text}) from error
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
