"""A student answers in batches that a resume repeats, and draws for each item alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from trainer.config import RunConfig, config_from_dict
from trainer.encoding import encode_prompts, encode_texts
from trainer.errors import Cancelled, ConfigError, OutOfMemory
from trainer.models import byte_tokenizer, memory_errors
from trainer.records import BenchmarkItem, Instruction, Response
from trainer.speaker import Speaker, load_speaker
from trainer.student import LocalStudent


def make_config(*, seed: int = 5, student: dict[str, Any] | None = None, respond: dict[str, Any] | None = None) -> RunConfig:
    small = {
        "model": "scratch-llama",
        "precision": "fp32",
        "template": "chat",
        "scratch_width": 32,
        "scratch_layers": 2,
        "scratch_heads": 2,
    }
    data = {
        "seed": seed,
        "endpoints": {"teacher": {}},
        "student": {**small, **(student or {})},
        "respond": {"batch_size": 4, "max_new_tokens": 6, **(respond or {})},
    }
    return config_from_dict(data)


def make_instructions(count: int) -> list[Instruction]:
    draw = random.Random(1)
    return [Instruction(key=f"i{n}", text="".join(draw.choices("abcdef", k=draw.randint(3, 12)))) for n in range(count)]


def respond(student: LocalStudent, instructions: list[Instruction], *, done: frozenset[str] = frozenset()) -> dict[str, Response]:
    kept: list[Response] = []
    student.respond(instructions, done=done, keep=kept.extend)
    assert len({response.instruction for response in kept}) == len(kept)
    return {response.instruction: response for response in kept}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> LocalStudent:
    return LocalStudent(make_config(), tmp_path_factory.mktemp("student"))


# The byte tokenizer


@pytest.mark.parametrize("text", ["plain", "naïve 北京 🦁", "a\tb\nc  d", "\x00\x7f", "</s><pad>"])
def test_bytes_come_back_as_they_went_in(text: str) -> None:
    tokenizer = byte_tokenizer()

    [ids] = encode_texts(tokenizer, [text])

    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_the_byte_tokenizer_loads_back_in_any_tool(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    byte_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert loaded("ab")["input_ids"] == [256, 97, 98]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (256, 257, 258)


# Prompts


def test_the_paper_s_form_begins_with_the_start_token_and_ends_with_the_response_heading() -> None:
    [ids] = encode_prompts(byte_tokenizer(), [Instruction(key="a", text="Add.", input="1 2")], template="paper")

    text = bytes(ids[1:]).decode()
    assert ids[0] == 256
    assert text.index("### Instruction:") < text.index("Add.") < text.index("1 2") < text.index("### Response:")


def test_an_instruction_cannot_forge_the_end_token() -> None:
    [ids] = encode_prompts(byte_tokenizer(), [Instruction(key="a", text="</s>")], template="paper")

    assert 257 not in ids


def test_a_tokenizer_without_a_chat_form_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None

    with pytest.raises(ConfigError, match=r"student\.template") as refusal:
        encode_prompts(tokenizer, [Instruction(key="a", text="x")], template="chat")
    assert set(refusal.value.fields) == {"student.template"}


# Batches and resuming


def test_each_instruction_is_answered_once(student: LocalStudent) -> None:
    instructions = make_instructions(11)

    assert set(respond(student, instructions)) == {item.key for item in instructions}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_responses_are_the_same_when_resumed_from_a_part(student: LocalStudent, share: float) -> None:
    instructions = make_instructions(20)
    whole = respond(student, instructions)
    done = frozenset(key for key in whole if random.Random(key).random() < share)

    rest = respond(student, instructions, done=done)

    assert rest == {key: response for key, response in whole.items() if key not in done}


def test_nothing_is_loaded_when_all_is_done(tmp_path: Path) -> None:
    config = make_config(student={"model": "/nowhere"})
    instructions = make_instructions(3)

    assert respond(LocalStudent(config, tmp_path), instructions, done=frozenset(item.key for item in instructions)) == {}


def test_what_an_item_draws_is_independent_of_its_neighbours(student: LocalStudent) -> None:
    same_length = [Instruction(key=f"k{n}", text=f"text {n}") for n in range(4)]
    together = respond(student, same_length)

    for item in same_length:
        assert respond(student, [item])[item.key].text == together[item.key].text


def test_another_seed_or_iteration_draws_other_texts(tmp_path: Path) -> None:
    instructions = make_instructions(4)
    first = respond(LocalStudent(make_config(), tmp_path), instructions)

    assert respond(LocalStudent(make_config(), tmp_path), instructions) == first
    assert respond(LocalStudent(make_config(), tmp_path, iteration=1), instructions) != first


def test_samples_follow_the_model_s_probabilities() -> None:
    import torch

    from trainer.speaker import gumbel_noise

    logits = torch.tensor([0.0, 1.0, 2.0])
    rows = 4000
    drawn = gumbel_noise(range(rows), 0.7)(torch.zeros(rows, 1), logits.expand(rows, 3)).argmax(-1)

    shares = torch.bincount(drawn, minlength=3) / rows
    assert torch.allclose(shares, torch.softmax(logits / 0.7, -1), atol=0.03)


def test_benchmark_items_are_answered_greedily_whatever_the_seed(tmp_path: Path) -> None:
    items = [BenchmarkItem(key=f"b{n}", task="copy", prompt="ab" * (n + 1), gold="") for n in range(5)]
    answers: list[list[tuple[BenchmarkItem, str]]] = [[], []]
    student = LocalStudent(make_config(), tmp_path)
    for kept in answers:
        student.answer(items, done=frozenset(), keep=kept.extend)
        student.iteration += 1

    assert answers[0] == answers[1]
    assert {item.key for item, _ in answers[0]} == {item.key for item in items}


def test_a_prompt_longer_than_the_context_becomes_a_failure(student: LocalStudent) -> None:
    responses = respond(student, [Instruction(key="long", text="x" * 3000), Instruction(key="short", text="x")])

    assert "2047" in responses["long"].failure
    assert responses["long"].text == ""
    assert responses["short"].failure == ""


def test_a_response_cut_at_the_longest_length_is_a_response(student: LocalStudent) -> None:
    # Random weights next to never say the end token, so all are cut.
    said = respond(student, make_instructions(4)).values()
    assert {(response.failure, response.tokens, response.cut) for response in said} == {("", 6, True)}


def test_the_text_ends_before_the_end_token_and_is_stripped() -> None:
    speaker = Speaker(model=None, tokenizer=byte_tokenizer(), context=10, stop_ids=(257,))

    assert speaker._read([32, 104, 105, 10, 257, 258, 258]) == ("hi", 4)
    assert speaker._read([257]) == ("", 0)


def test_a_stop_before_anything_ended_keeps_nothing(tmp_path: Path) -> None:
    student = LocalStudent(make_config(), tmp_path, should_stop=lambda: True)
    kept: list[Response] = []

    with pytest.raises(Cancelled):
        student.respond(make_instructions(3), done=frozenset(), keep=kept.extend)
    assert kept == []


# Loading


def test_the_scratch_student_is_the_same_for_the_same_seed_and_leaves_the_global_stream_alone() -> None:
    import torch

    from trainer.models import scratch_llama

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, second, other = (scratch_llama(make_config(seed=seed)).state_dict() for seed in (5, 5, 6))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("name", ["/nowhere/at/all", "../missing", "a/b/c"])
def test_an_unknown_student_is_refused_with_what_to_name_instead(name: str) -> None:
    config = make_config(student={"model": name})

    with pytest.raises(ConfigError, match="a Hub name, a local folder or scratch-llama") as refusal:
        load_speaker(config, None)
    assert "student.model" in refusal.value.fields


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no checkpoint"):
        load_speaker(make_config(), tmp_path / "iteration-9")


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    import torch

    from trainer.models import scratch_llama

    model = scratch_llama(make_config())
    model.config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    with pytest.raises(ConfigError, match="safetensors"):
        load_speaker(make_config(student={"model": str(tmp_path)}), None)


def test_a_cpu_refuses_fp16() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, which can compute in fp16")
    with pytest.raises(ConfigError, match=r"student\.precision"):
        load_speaker(make_config(student={"precision": "fp16"}), None)


def test_running_out_of_memory_says_what_to_lower() -> None:
    import torch

    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(OutOfMemory, match="not enough memory for a batch"), memory_errors("a batch"):
            raise error
    with pytest.raises(RuntimeError, match="shape"), memory_errors("a batch"):
        raise RuntimeError("shape mismatch")
