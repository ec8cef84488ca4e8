"""A loaded model answers ragged prompts: rows leave as they end and others join, and each text is what it would be alone."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.speaking import save_student, tiny_config
from trainer.checkpoints import Manifest, read_checkpoint, write_checkpoint
from trainer.config import RunConfig
from trainer.encoding import encode_prompts
from trainer.errors import ConfigError, OutOfMemory
from trainer.models import byte_tokenizer, context_of, load_base
from trainer.records import Instruction
from trainer.respond_loop import ResponseLoop, Row
from trainer.respond_plan import Costs, plan_groups
from trainer.speaker import Prompt, Reply, Speaker, load_speaker

STOPS = tuple(range(250, 259))


def make_model(kind: str) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=256))
        elif kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(vocab_size=259, max_position_embeddings=512, **wide))
        else:
            model = MistralForCausalLM(MistralConfig(vocab_size=259, max_position_embeddings=512, sliding_window=16, **wide))
    for weight in model.parameters():
        weight.data *= 4  # or it would hardly look at what it reads
        weight.requires_grad_(False)
    return model.eval()


def make_prompts(count: int = 20) -> list[Prompt]:
    draw = random.Random(0)
    prompts = [Prompt(at=n, ids=[draw.randrange(250) for _ in range(draw.randint(1, 60))], seed=n) for n in range(count)]
    return sorted(prompts, key=lambda prompt: -len(prompt.ids))


def make_speaker(model: Any) -> Speaker:
    return Speaker(model=model, tokenizer=byte_tokenizer(), context=context_of(model), stop_ids=STOPS)


def reply(model: Any, prompts: list[Prompt], *, temperature: float, at_once: int = 6) -> dict[int, Reply]:
    kept: list[Reply] = []
    make_speaker(model).reply(prompts, at_once=at_once, max_new_tokens=40, temperature=temperature, keep=kept.extend)
    assert len({one.at for one in kept}) == len(kept)
    return {one.at: one for one in kept}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding window"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_text_is_what_the_library_writes_for_it_alone(kind: str, temperature: float) -> None:
    model = make_model(kind)
    together = reply(model, make_prompts(), temperature=temperature)

    for prompt in make_prompts():
        [alone] = make_speaker(model).generate([prompt.ids], max_new_tokens=40, temperature=temperature, seeds=[prompt.seed])
        assert (together[prompt.at].text, together[prompt.at].tokens) == alone
        assert together[prompt.at].cut == (alone[1] == 40)


def answer(model: Any, at_once: int) -> tuple[ResponseLoop, list[Row], list[str]]:
    ended: list[Row] = []
    told: list[str] = []
    loop = ResponseLoop(model, stop_ids=STOPS, pad_id=0, temperature=1.0, on_end=ended.append, should_stop=lambda: False, tell=told.append)
    loop.answer([Row(at=p.at, prompt=p.ids, limit=40, seed=p.seed) for p in make_prompts()], at_once)
    return loop, ended, told


def test_rows_leave_when_they_end() -> None:
    loop, ended, _ = answer(make_model("llama"), 20)

    written = sum(len(row.ids) - 1 for row in ended)
    assert loop.steps == max(len(row.ids) for row in ended) - 1
    assert written <= loop.row_steps < 0.7 * loop.steps * 20


def run_short_of_memory(monkeypatch: pytest.MonkeyPatch, model: Any, most: int) -> None:
    """From now on more rows than `most` are too many for the model."""
    import torch

    forward = model.forward

    def limited(
        input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None, **others: Any
    ) -> Any:
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values, **others
        )

    monkeypatch.setattr(model, "forward", limited)


def test_where_memory_runs_out_half_as_many_go_on_with_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    _, whole, _ = answer(model, 16)
    run_short_of_memory(monkeypatch, model, 4)
    _, ended, told = answer(model, 16)

    assert {row.at: row.ids for row in ended} == {row.at: row.ids for row in whole}
    assert told == [
        "Not enough memory for 16 responses at once: going on with 8.",
        "Not enough memory for 8 responses at once: going on with 4.",
    ]


def test_where_not_one_fits_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    run_short_of_memory(monkeypatch, model, 0)

    with pytest.raises(OutOfMemory, match="one response"):
        answer(model, 4)


def test_groups_hold_every_position_once_longest_first_and_of_like_length() -> None:
    costs = Costs(token=1, row=0, budget=1000)
    lengths = [90, 900, 100, 30, 80, 20]

    groups = plan_groups(lengths, most_rows=2, max_new_tokens=10, costs=costs)

    assert [at for group in groups for at in group.positions] == [1, 2, 0, 4, 3, 5]
    assert groups[0].positions == (1,)
    assert [group.rows for group in groups][:1] == [1]
    assert all(group.rows <= 2 for group in groups)


# Loading


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint tuned whole, of random weights."""
    return write_student(tmp_path_factory.mktemp("saved") / "iteration-0", tiny_config())


def write_student(folder: Path, config: RunConfig) -> Path:
    manifest = Manifest(
        config=config.as_dict(), method="full", base="scratch-llama", revision="", iteration=0, step=1, first_loss=2, last_loss=1, seed=1
    )
    write_checkpoint(folder, manifest, lambda folder: save_student(folder) and None, weight_bytes=1)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_answers_nothing_and_names_the_file(saved: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "iteration-0"
    shutil.copytree(saved, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-2] + b"??")

    with pytest.raises(ConfigError, match=rf"iteration-0 is damaged: {name} is not what was written.*Restore it from the team's storage"):
        load_speaker(tiny_config(), copy)


def test_weights_that_cannot_be_read_are_not_blamed_on_a_setting(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student")  # without a manifest: nothing to hold it against
    (folder / "model.safetensors").write_bytes(b"no weights")

    with pytest.raises(ConfigError, match=r"The checkpoint .*student cannot be loaded .* launch a new run") as caught:
        load_speaker(tiny_config(), folder)
    assert caught.value.fields == {}


def test_an_adapter_on_a_damaged_checkpoint_says_which(saved: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "iteration-0", tmp_path / "iteration-1"
    shutil.copytree(saved, base)
    manifest = replace(read_checkpoint(base), method="lora", base=str(base))
    write_checkpoint(adapter, manifest, lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x") and None, weight_bytes=1)
    (base / "model.safetensors").write_bytes(b"no weights")

    with pytest.raises(ConfigError, match=r"iteration-0 is damaged: model\.safetensors"):
        load_speaker(tiny_config(), adapter)


def student_config(model: Path) -> RunConfig:
    config = tiny_config()
    return replace(config, student=replace(config.student, model=str(model)))


def test_a_folder_that_holds_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^The folder {tmp_path} holds no model \(no config\.json\)\.") as caught:
        load_speaker(student_config(tmp_path), None)
    assert set(caught.value.fields) == {"student.model"}


@pytest.mark.parametrize("ask", [load_speaker, lambda config, start: load_base(config, config.student.model, "", dtype=None)])
def test_an_adapter_is_no_way_round_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Any) -> None:
    allowed = tmp_path / "allowed"
    byte_tokenizer().save_pretrained(allowed)
    (allowed / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(save_student(tmp_path / "elsewhere"))}))
    monkeypatch.setenv("LIONWEB_STUDENT_SOURCES", str(allowed))

    with pytest.raises(ConfigError, match="is an adapter and no whole model"):
        ask(student_config(allowed), None)


def test_an_adapter_of_the_hub_is_no_way_round_it_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path / "adapter_config.json"
    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", lambda name, **options: str(found))

    with pytest.raises(ConfigError, match="acme/adapter is an adapter and no whole model"):
        load_base(student_config(Path("acme/adapter")), "acme/adapter", "", dtype=None)  # type: ignore[arg-type]


def test_a_context_by_another_name_is_known() -> None:
    from transformers import GPT2Config, LlamaConfig, MptConfig

    configs = [MptConfig(max_seq_len=321), GPT2Config(n_positions=322), LlamaConfig(max_position_embeddings=323)]
    assert [context_of(SimpleNamespace(config=config)) for config in configs] == [321, 322, 323]


def test_a_chat_template_that_fails_says_what_to_do() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('Only with a system message') }}"

    with pytest.raises(ConfigError, match=r"Only with a system message.*student\.template to 'paper'") as caught:
        encode_prompts(tokenizer, [Instruction(key="a", text="x")], template="chat")
    assert set(caught.value.fields) == {"student.template"}
