"""Examples as the student reads them: what carries loss, in which order, padded or packed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.tuning_cases import make_config
from trainer.errors import ConfigError
from trainer.models import byte_tokenizer
from trainer.records import Example, Instruction

torch = pytest.importorskip("torch")
examples = pytest.importorskip("trainer.examples")


def encode(responses: list[str], *, max_length: int = 64, too_long: str = "cut") -> Any:
    texts = [Example(instruction=Instruction(key=str(n), text="ab"), response=text) for n, text in enumerate(responses)]
    return examples.encode_examples(byte_tokenizer(), texts, template="chat", max_length=max_length, too_long=too_long)


def padded(responses: list[str], *, pad_id: int = 258) -> dict[str, Any]:
    batch: dict[str, Any] = examples.collate_padded(encode(responses).examples, pad_id=pad_id)
    return {name: tensor.tolist() for name, tensor in batch.items()}


def test_the_loss_is_on_the_response_and_its_end_alone() -> None:
    batch = padded(["XY", "Z"])

    assert batch["input_ids"] == [[256, 97, 98, 10, 88, 89, 257], [256, 97, 98, 10, 90, 257, 258]]
    # After position 3, the last of the prompt, comes the first token to be learnt.
    assert batch["logits_to_keep"] == [3, 4, 5]
    assert batch["labels"] == batch["shift_labels"] == [[88, 89, 257], [90, 257, -100]]


def test_the_end_is_learnt_where_padding_is_the_end_token_too() -> None:
    assert padded(["XY", "Z"], pad_id=257)["labels"] == [[88, 89, 257], [90, 257, -100]]


def test_without_a_prompt_all_but_the_first_token_is_learnt() -> None:
    bare = [examples.EncodedExample(torch.tensor([7, 8, 9], dtype=torch.int32), 0), examples.EncodedExample(torch.tensor([5, 6]), 1)]
    beside = examples.collate_padded(bare, pad_id=0)
    in_a_row = examples.collate_packed(bare)

    assert beside["labels"].tolist() == [[8, 9], [6, -100]]
    assert in_a_row["labels"].tolist() == [[8, 9, 6]]
    assert [example.response_tokens for example in bare] == [2, 1]


def test_packed_examples_stand_in_one_row_and_count_their_positions_anew() -> None:
    batch = {name: tensor.tolist() for name, tensor in examples.collate_packed(encode(["XY", "Z"]).examples).items()}

    assert batch["input_ids"] == [[256, 97, 98, 10, 88, 89, 257, 256, 97, 98, 10, 90, 257]]
    assert batch["position_ids"] == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]]
    assert batch["logits_to_keep"] == [3, 4, 5, 10, 11]
    assert batch["labels"] == [[88, 89, 257, 90, 257]]


def test_a_long_response_is_cut_from_the_right_counted_and_has_no_end() -> None:
    encoded = encode(["XYZ", "X"], max_length=6)

    assert [example.ids.tolist() for example in encoded.examples] == [[256, 97, 98, 10, 88, 89], [256, 97, 98, 10, 88, 257]]
    assert (encoded.cut, encoded.left_out) == (1, 0)


def test_a_long_response_may_be_left_out_instead() -> None:
    encoded = encode(["XYZ", "X"], max_length=6, too_long="leave_out")

    assert (encoded.kept, encoded.cut, encoded.left_out) == ([1], 0, 1)


def test_a_prompt_that_fills_the_whole_length_is_left_out_and_counted() -> None:
    texts = [Example(instruction=Instruction(key=text, text=text), response="X") for text in ("a", "a" * 50)]
    encoded = examples.encode_examples(byte_tokenizer(), texts, template="chat", max_length=10)

    assert (encoded.kept, encoded.left_out) == ([0], 1)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"imitation\.max_length"):
        encode(["X"], max_length=4)
    with pytest.raises(ConfigError, match="no examples"):
        encode([])


def test_encoded_examples_are_found_again_as_they_were(tmp_path: Path) -> None:
    encoded = encode(["XYZ", "X"], max_length=6)
    examples.save_encoded(tmp_path / "tokens", encoded)
    found = examples.load_encoded(tmp_path / "tokens")

    assert [(e.ids.tolist(), e.prompt_length) for e in found.examples] == [(e.ids.tolist(), e.prompt_length) for e in encoded.examples]
    assert (found.kept, found.cut, found.left_out) == (encoded.kept, encoded.cut, encoded.left_out)


@pytest.mark.parametrize("content", [None, b"", b"half a file"])
def test_tokens_that_are_not_whole_count_as_absent(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokens").write_bytes(content)

    assert examples.load_encoded(tmp_path / "tokens") is None


def test_the_first_batch_is_shown_with_what_carries_loss() -> None:
    texts = [Example(instruction=Instruction(key=str(n), text="ab"), response=text) for n, text in enumerate(["XY", "Z"])]
    encoded = examples.encode_examples(byte_tokenizer(), texts, template="chat", max_length=64)
    shown = examples.show_batch(byte_tokenizer(), texts, encoded, [1, 0], batch_size=2)

    assert [(e.instruction, e.pieces) for e in shown.examples] == [
        ("1", (("<s>ab\n", False), ("Z</s>", True))),
        ("0", (("<s>ab\n", False), ("XY</s>", True))),
    ]
    assert [(e.tokens, e.learnt) for e in shown.examples] == [(6, 2), (7, 3)]


def test_every_example_is_seen_once_an_epoch_in_an_order_of_the_seed() -> None:
    config = make_config(batch_size=4, device_batch_size=4)
    order = examples.plan_order([5] * 8, steps=6, config=config, iteration=0)

    epochs = [order[:8], order[8:16], order[16:]]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert order == examples.plan_order([5] * 8, steps=6, config=config, iteration=0)
    assert order != examples.plan_order([5] * 8, steps=6, config=config, iteration=1)


def test_steps_are_as_set_or_as_many_as_the_epochs_make() -> None:
    assert examples.step_count(make_config(first_steps=7), 100, iteration=0) == 7
    assert examples.step_count(make_config(steps=9), 100, iteration=2) == 9
    assert examples.step_count(make_config(first_steps=0, epochs=3, batch_size=8), 20, iteration=0) == math.ceil(60 / 8)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 8))
def test_evened_batches_hold_every_example_once(lengths: list[int], size: int) -> None:
    assert sorted(examples.evened(lengths, size=size)) == list(range(len(lengths)))


def test_evened_batches_have_about_as_many_tokens_each() -> None:
    lengths = [512, 400, 300, 200, 100, 90, 80, 70]
    order = examples.evened(lengths, size=4)

    sums = [sum(lengths[i] for i in order[at : at + 4]) for at in (0, 4)]
    assert max(sums) - min(sums) <= 70
