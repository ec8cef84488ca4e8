"""Imitation learns the responses and their ends, and a kill changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from trainer import checkpoints
from trainer.checkpoints import read_checkpoint, verify_checkpoint
from trainer.config import RunConfig, config_from_dict
from trainer.errors import Cancelled, ConfigError, NoSpace
from trainer.models import byte_tokenizer, load_model
from trainer.records import Example, Instruction, Metric, Response
from trainer.speaker import never
from trainer.student import LocalStudent

torch = pytest.importorskip("torch")
imitation = pytest.importorskip("trainer.imitation")

STEPS = 12
GOLDEN_LOSSES = (5.5584, 5.4291, 5.0583, 4.7734)


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test catches it."""


def make_config(*, student: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    small = {
        "model": "scratch-llama",
        "precision": "fp32",
        "template": "chat",
        "scratch_width": 32,
        "scratch_layers": 2,
        "scratch_heads": 2,
    }
    tuning = {
        "first_steps": STEPS,
        "steps": STEPS,
        "batch_size": 8,
        "device_batch_size": 8,
        "learning_rate": 5e-3,
        "warmup": 1 / STEPS,
        "save_steps": 4,
        "log_steps": 3,
    }
    data = {
        "seed": 11,
        "endpoints": {"teacher": {}},
        "student": {**small, **(student or {})},
        "imitation": {**tuning, **settings},
        "respond": {"temperature": 0, "max_new_tokens": 12, "batch_size": 8},
    }
    return config_from_dict(data)


def make_examples(count: int = 20) -> list[Example]:
    letters = "abcdefghij"
    words = [
        "".join(letters[(n * step + 3 * at) % 10] for at in range(3 + n % 4)) for n, step in zip(range(count), [3, 7] * count, strict=False)
    ]
    return [Example(instruction=Instruction(key=f"i{n:02d}", text=f"upper: {word}"), response=word.upper()) for n, word in enumerate(words)]


def imitate(
    config: RunConfig,
    folder: Path,
    *,
    examples: list[Example] | None = None,
    iteration: int = 0,
    start: Path | None = None,
    should_stop: Callable[[], bool] = never,
    on_metric: Callable[[Metric], None] | None = None,
) -> tuple[Path, list[Metric]]:
    metrics: list[Metric] = []

    def keep(metric: Metric) -> None:
        metrics.append(metric)
        if on_metric:
            on_metric(metric)

    student = LocalStudent(config, folder, start, should_stop=should_stop)
    info = student.imitate(make_examples() if examples is None else examples, iteration=iteration, tell=keep)
    return info.path, metrics


def weights_of(path: Path) -> bytes:
    [file] = path.glob("*.safetensors")
    return file.read_bytes()


def kill_at(step: int) -> Callable[[Metric], None]:
    def kill(metric: Metric) -> None:
        if metric.step >= step:
            raise Killed

    return kill


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Metric]]:
    """A tuning from beginning to end that others are compared with."""
    return imitate(make_config(), tmp_path_factory.mktemp("undisturbed"))


# The data


def encode(responses: list[str], *, max_length: int = 64) -> Any:
    examples = [Example(instruction=Instruction(key=str(n), text="ab"), response=text) for n, text in enumerate(responses)]
    return imitation.encode_examples(byte_tokenizer(), examples, template="chat", max_length=max_length)


def test_the_loss_is_on_the_response_and_its_end_alone() -> None:
    batch = imitation.collate(encode(["XY", "Z"]), pad_id=258)

    assert batch["input_ids"].tolist() == [[256, 97, 98, 10, 88, 89, 257], [256, 97, 98, 10, 90, 257, 258]]
    assert batch["labels"].tolist() == [[-100] * 4 + [88, 89, 257], [-100] * 4 + [90, 257, -100]]


def test_the_end_is_learnt_where_padding_is_the_end_token_too() -> None:
    batch = imitation.collate(encode(["XY", "Z"]), pad_id=257)

    assert batch["labels"].tolist()[1] == [-100] * 4 + [90, 257, -100]


def test_a_long_response_is_cut_from_the_right_and_then_has_no_end() -> None:
    [example] = encode(["XYZ"], max_length=6)

    assert example.ids.tolist() == [256, 97, 98, 10, 88, 89]


def test_a_prompt_that_fills_the_whole_length_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    examples = [Example(instruction=Instruction(key=text, text=text), response="X") for text in ("a", "a" * 50)]

    assert len(imitation.encode_examples(byte_tokenizer(), examples, template="chat", max_length=10)) == 1
    assert "1 of 2 examples left out" in caplog.text


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"imitation\.max_length"):
        encode(["X"], max_length=4)
    with pytest.raises(ConfigError, match="no examples"):
        encode([])


def test_every_example_is_seen_once_an_epoch_in_an_order_of_the_seed() -> None:
    config = make_config(batch_size=4, device_batch_size=4)
    order = imitation.plan_order([5] * 8, steps=6, config=config, iteration=0)

    epochs = [order[:8], order[8:16], order[16:]]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert order == imitation.plan_order([5] * 8, steps=6, config=config, iteration=0)
    assert order != imitation.plan_order([5] * 8, steps=6, config=config, iteration=1)


def test_steps_are_as_set_or_as_many_as_the_epochs_make() -> None:
    assert imitation.step_count(make_config(first_steps=7), 100, iteration=0) == 7
    assert imitation.step_count(make_config(steps=9), 100, iteration=2) == 9
    assert imitation.step_count(make_config(first_steps=0, epochs=3, batch_size=8), 20, iteration=0) == math.ceil(60 / 8)


# Learning


def test_it_overfits_one_batch_ends_included(tmp_path: Path) -> None:
    examples = make_examples(6)
    config = make_config(first_steps=100, batch_size=6, device_batch_size=6, learning_rate=1e-2, save_steps=1000, log_steps=50)
    student = LocalStudent(config, tmp_path)
    info = student.imitate(examples, iteration=0, tell=lambda metric: None)

    kept: list[Response] = []
    student.respond([example.instruction for example in examples], done=frozenset(), keep=kept.extend)

    assert info.last_loss < 0.05 < 4 < info.first_loss
    assert {response.instruction: response.text for response in kept} == {e.instruction.key: e.response for e in examples}
    assert all(response.tokens < config.respond.max_new_tokens for response in kept)


def test_the_first_losses_are_the_known_ones(undisturbed: tuple[Path, list[Metric]]) -> None:
    steps, losses = zip(*((metric.step, metric.loss) for metric in undisturbed[1]), strict=True)

    # The first, every third, each with a save, and the last. A change here is a change of the method, or of what it draws.
    assert steps == (1, 3, 4, 6, 8, 9, 12)
    assert losses[:4] == pytest.approx(GOLDEN_LOSSES, abs=1e-3)


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (33, 0), (34, 2), (100, 3), (1219, 37)])
def test_a_warm_up_of_less_than_a_step_is_none(steps: int, warm: int) -> None:
    assert imitation.warmup_steps(steps, share=0.03) == warm


def test_metrics_tell_steps_rates_and_speed(undisturbed: tuple[Path, list[Metric]]) -> None:
    metrics = undisturbed[1]

    assert {metric.steps for metric in metrics} == {STEPS}
    assert max(metric.learning_rate for metric in metrics) <= 5e-3
    assert all(metric.grad_norm and metric.memory_gib for metric in metrics)
    assert all(metric.tokens_per_s for metric in metrics[1:])


def test_eight_at_once_is_two_times_four(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    _, metrics = imitate(make_config(device_batch_size=4), tmp_path)

    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in undisturbed[1]], abs=1e-3)
    assert [m.grad_norm for m in metrics] == pytest.approx([m.grad_norm for m in undisturbed[1]], rel=1e-2)


def test_the_order_in_which_examples_arrive_changes_nothing(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    path, _ = imitate(make_config(), tmp_path, examples=make_examples()[::-1])

    assert weights_of(path) == weights_of(undisturbed[0])


def test_a_loss_that_is_no_number_ends_with_an_error_that_names_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation.Tuning, "compute_loss", lambda self, model, inputs, **_: model(**inputs).loss * math.nan)

    with pytest.raises(imitation.LossDiverged, match=r"nan at step 1 of 12.*imitation\.learning_rate"):
        imitate(make_config(), tmp_path)


def test_a_cpu_refuses_fp16(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, which can compute in fp16")
    with pytest.raises(ConfigError, match=r"student\.precision"):
        imitate(make_config(student={"precision": "fp16"}), tmp_path)


# Stopping and going on


def test_killed_and_started_again_gives_the_same_weights_bit_for_bit(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, on_metric=kill_at(6))
    path, metrics = imitate(make_config(), tmp_path)

    assert metrics[0].step > 4, "it did not go on from the save of step 4"
    assert weights_of(path) == weights_of(undisturbed[0])
    whole = {metric.step: metric.loss for metric in undisturbed[1]}
    assert all(whole[metric.step] == metric.loss for metric in metrics)
    assert read_checkpoint(path).first_loss == read_checkpoint(undisturbed[0]).first_loss


def test_a_save_that_a_kill_left_half_written_is_not_used(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, on_metric=kill_at(6))
    half = tmp_path / ".iteration-0.work" / ".checkpoint-8.writing"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    path, _ = imitate(make_config(), tmp_path)

    assert weights_of(path) == weights_of(undisturbed[0])


def test_a_stop_saves_and_says_at_which_step_and_the_rest_can_follow(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    asked = count(1)

    with pytest.raises(Cancelled, match="step 6 of 12"):
        imitate(make_config(), tmp_path, should_stop=lambda: next(asked) >= 6)
    path, metrics = imitate(make_config(), tmp_path)

    assert metrics[0].step > 6, "it did not go on from the save of step 6"
    assert weights_of(path) == weights_of(undisturbed[0])


def test_a_save_of_other_work_is_not_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, on_metric=kill_at(6))

    _, metrics = imitate(make_config(), tmp_path, examples=make_examples(19))

    assert metrics[0].step == 1


def test_a_finished_imitation_is_not_repeated(tmp_path: Path) -> None:
    path, _ = imitate(make_config(), tmp_path)
    again, metrics = imitate(make_config(), tmp_path)

    assert (again, metrics) == (path, [])


# Checkpoints


def test_the_checkpoint_is_whole_and_only_it_is_left(undisturbed: tuple[Path, list[Metric]]) -> None:
    path, metrics = undisturbed
    manifest = read_checkpoint(path)

    assert verify_checkpoint(path) == []
    assert [p.name for p in path.parent.iterdir()] == ["iteration-0"]
    assert (manifest.step, manifest.method, manifest.base) == (STEPS, "full", "scratch-llama")
    assert (manifest.first_loss, manifest.last_loss) == (metrics[0].loss, metrics[-1].loss)
    assert config_from_dict(manifest.config) == make_config()


def test_a_later_iteration_starts_from_its_parent(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    path, metrics = imitate(make_config(), tmp_path, iteration=1, start=undisturbed[0])

    assert metrics[0].loss < undisturbed[1][0].loss
    assert read_checkpoint(path).parent == str(undisturbed[0])
    assert read_checkpoint(path).parent_digest == read_checkpoint(undisturbed[0]).digest


def test_any_tool_loads_the_checkpoint(undisturbed: tuple[Path, list[Metric]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(undisturbed[0], use_safetensors=True)

    assert model.config.use_cache
    assert AutoTokenizer.from_pretrained(undisturbed[0]).eos_token_id == 257


def test_too_little_space_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 1000)
    seen: list[Metric] = []

    with pytest.raises(NoSpace, match=r"needs 17 MiB"):
        imitate(make_config(), tmp_path, on_metric=seen.append)
    assert seen == []
    assert list(tmp_path.iterdir()) == []


# Adapters


LORA = {"method": "lora", "lora_rank": 4, "lora_dropout": 0.1}


def test_an_adapter_loads_back_to_identical_outputs(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    config = make_config(student=LORA)
    path, _ = imitate(config, tmp_path, iteration=1, start=undisturbed[0])
    ids = torch.tensor([[256, 97, 98, 10]])

    with torch.no_grad():
        tuned = imitation.load_trainable(config, path, iteration=2).eval()(ids).logits
        merged = load_model(config, path, dtype=torch.float32)(ids).logits
        base = load_model(config, undisturbed[0], dtype=torch.float32)(ids).logits

    assert read_checkpoint(path).base == str(undisturbed[0])
    assert (path / "adapter_model.safetensors").stat().st_size < 100_000
    torch.testing.assert_close(merged, tuned, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tuned, base, atol=1e-3)


def test_an_adapter_is_tuned_further_and_survives_a_kill(tmp_path: Path) -> None:
    config = make_config(student=LORA)
    first, _ = imitate(config, tmp_path)
    whole, _ = imitate(config, tmp_path / "whole", iteration=1, start=first)
    with pytest.raises(Killed):
        imitate(config, tmp_path / "killed", iteration=1, start=first, on_metric=kill_at(6))
    killed, metrics = imitate(config, tmp_path / "killed", iteration=1, start=first)

    assert metrics[0].step > 4
    assert weights_of(killed) == weights_of(whole) != weights_of(first)
    assert read_checkpoint(whole).base == "scratch-llama"
