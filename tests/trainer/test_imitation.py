"""Imitation learns the responses and their ends, and a kill changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.trainer.tuning_cases import STEPS, Killed, imitate, kill_at, make_config, make_examples, weights_of
from trainer import checkpoints
from trainer.checkpoints import read_checkpoint, verify_checkpoint
from trainer.config import config_from_dict
from trainer.errors import Cancelled, ConfigError, LossDiverged, NoSpace
from trainer.models import load_model
from trainer.records import FirstBatch, Metric, Preflight, Remark, Response, Saved, TuningNews
from trainer.student import LocalStudent

torch = pytest.importorskip("torch")
imitation = pytest.importorskip("trainer.imitation")
tuning = pytest.importorskip("trainer.tuning")

GOLDEN_LOSSES = (5.5584, 5.4291, 5.0583, 4.7734)


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
    assert tuning.warmup_steps(steps, share=0.03) == warm


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


def test_packed_is_padded(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    _, metrics = imitate(make_config(batches="packed", device_batch_size=4), tmp_path)

    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in undisturbed[1]], abs=1e-3)
    assert [m.grad_norm for m in metrics] == pytest.approx([m.grad_norm for m in undisturbed[1]], rel=1e-2)


def test_gradient_checkpointing_changes_nothing_that_is_learnt(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    _, metrics = imitate(make_config(gradient_checkpointing=True), tmp_path)

    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in undisturbed[1]], abs=1e-5)


def test_a_model_that_scores_every_position_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Path, list[Metric]]
) -> None:
    monkeypatch.setattr(tuning, "accepts_logits_to_keep", lambda model: False)
    _, metrics = imitate(make_config(), tmp_path)

    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in undisturbed[1]], abs=1e-5)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_loss_is_torch_s_and_so_is_its_gradient(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    loss = pytest.importorskip("trainer.loss")
    response_loss = loss.response_loss
    if pieces > 1:
        monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 300 * 3)  # three rows at once: 3, 3, 1
    torch.manual_seed(0)
    scores = torch.randn(7, 300, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([5, -100, 299, 0, -100, 17, 17])
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="sum", ignore_index=-100)
    [slope] = torch.autograd.grad(expected * 3, scores)
    ours = response_loss(scores, labels)
    [our_slope] = torch.autograd.grad(ours * 3, scores)

    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(our_slope, slope, atol=1e-5, rtol=1e-5)


def test_the_factor_of_the_loss_is_not_rounded_to_the_scores_type() -> None:
    from trainer.loss import response_loss

    scores = torch.zeros(1, 3, dtype=torch.bfloat16, requires_grad=True)
    factor = 1 + 2**-8  # in bf16 it would be 1
    [slope] = torch.autograd.grad(response_loss(scores, torch.tensor([0])) * factor, scores)

    assert slope[0, 1] == torch.tensor(1 / 3).bfloat16().float().mul(factor).bfloat16() != torch.tensor(1 / 3).bfloat16()


def test_the_end_is_learnt_where_padding_is_the_end_token_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "pad_id_of", lambda tokenizer: tokenizer.eos_token_id)
    examples = make_examples(4)  # of different lengths, so that there is padding
    config = make_config(first_steps=60, batch_size=4, device_batch_size=4, learning_rate=1e-2, save_steps=1000, log_steps=60)
    student = LocalStudent(config, tmp_path)
    student.imitate(examples, iteration=0, tell=lambda news: None)
    kept: list[Response] = []
    student.respond([example.instruction for example in examples], done=frozenset(), keep=kept.extend)

    assert len({len(example.response) for example in examples}) > 1
    assert {response.instruction: response.text for response in kept} == {e.instruction.key: e.response for e in examples}
    assert all(response.tokens < config.respond.max_new_tokens for response in kept)


def test_a_process_alone_tries_once_more_with_half_the_batch_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    compute = tuning.Tuning.compute_loss

    def narrow(self: object, model: object, inputs: dict[str, torch.Tensor], *args: object, **options: object) -> object:
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > 4:
            raise torch.OutOfMemoryError("the card is full")
        return compute(self, model, inputs, *args, **options)

    monkeypatch.setattr(tuning.Tuning, "compute_loss", narrow)
    news: list[TuningNews] = []
    path, _ = imitate(make_config(first_steps=2), tmp_path, news=news)

    assert rows == [8, 4, 4, 4, 4]
    assert verify_checkpoint(path) == []
    assert "Trying once more with 4 on the device" in " ".join(told.text for told in news if isinstance(told, Remark))


def test_what_it_will_take_and_the_first_batch_are_told_before_the_first_step(tmp_path: Path) -> None:
    news: list[TuningNews] = []
    imitate(make_config(max_length=17), tmp_path, news=news)
    cut = sum(len(example.response) > 3 for example in make_examples())

    found, batch, remark = news[:3]
    assert isinstance(found, Preflight)
    assert (found.examples, found.steps, found.cut, found.left_out) == (20, STEPS, cut, 0)
    assert found.parameters == found.trainable == 41_824
    assert (found.weights, found.gradients, found.optimizer) == (4 * 41_824, 4 * 41_824, 8 * 41_824)
    assert 0 < found.activations < found.memory
    assert 100 * 2**20 < found.libraries < found.memory  # where there is no card, theirs is the same memory
    assert 0 < found.response_tokens < found.device_tokens
    assert found.seconds is not None
    assert isinstance(batch, FirstBatch)
    assert all(text.removesuffix("</s>").isupper() for example in batch.examples for text, learnt in example.pieces if learnt)
    assert remark == Remark(text=f"{cut} of 20 examples are longer than 17 tokens and were cut: they teach no end.")
    assert [told.step for told in news if isinstance(told, Saved)] == [4, 8]


def test_a_length_beyond_the_student_s_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4,096 tokens is beyond.*imitation\.max_length to 2048"):
        imitate(make_config(max_length=4096), tmp_path)


def test_a_loss_that_grows_is_named_with_what_to_do(tmp_path: Path) -> None:
    config = make_config(first_steps=300, learning_rate=1.0, schedule="constant", warmup=0, log_steps=1, save_steps=1000)

    with pytest.raises(LossDiverged, match=r"The loss diverges at step \d+ of 300: .*Lower imitation\.learning_rate \(1\)"):
        imitate(config, tmp_path)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([5.0] * 19 + [50.0], False),  # too few to tell
        ([5.0, 4.0, 3.0, 2.0, 1.0] * 10, False),
        ([5.0] * 10 + [1.0] * 10 + [4.0] * 10, False),  # worse than its best, better than its beginning
        ([5.0] * 10 + [2.0] * 10 + [9.0] * 10, True),
    ],
)
def test_a_loss_diverges_when_it_is_above_its_beginning_and_twice_its_best(losses: list[float], told: bool) -> None:
    assert (tuning.diverged(losses) is not None) == told


def test_the_order_in_which_examples_arrive_changes_nothing(tmp_path: Path, undisturbed: tuple[Path, list[Metric]]) -> None:
    path, _ = imitate(make_config(), tmp_path, examples=make_examples()[::-1])

    assert weights_of(path) == weights_of(undisturbed[0])


def test_a_loss_that_is_no_number_ends_with_an_error_that_names_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "response_loss", lambda logits, labels: logits.sum() * math.nan)

    with pytest.raises(LossDiverged, match=r"nan at step 1 of 12.*imitation\.learning_rate"):
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


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "no digests"])
def test_a_damaged_save_is_passed_over_for_the_one_before_and_said(
    tmp_path: Path, undisturbed: tuple[Path, list[Metric]], damage: str
) -> None:
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, on_metric=kill_at(9))
    last = tmp_path / ".iteration-0.work" / "checkpoint-8"
    file = last / ("sha256.json" if damage == "no digests" else "optimizer.pt")
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-10], "other bytes": content[:-1] + b"x", "no digests": b""}[damage])
    news: list[TuningNews] = []

    path, metrics = imitate(make_config(), tmp_path, news=news)

    remarks = [told.text for told in news if isinstance(told, Remark)]
    assert remarks == ["The save of step 8 is damaged: its files are not what was written. Going on from step 4."]
    assert metrics[0].step > 4
    assert weights_of(path) == weights_of(undisturbed[0])


def test_a_stopped_tuning_s_save_can_be_used_as_it_is(tmp_path: Path) -> None:
    asked = count(1)
    with pytest.raises(Cancelled, match="or use it as it is"):
        imitate(make_config(), tmp_path, should_stop=lambda: next(asked) >= 6)
    saved = weights_of(tmp_path / ".iteration-0.work" / "checkpoint-6")

    path, metrics = imitate(make_config(), tmp_path, use_saved=True)

    assert metrics == []
    assert read_checkpoint(path).step == 6
    assert verify_checkpoint(path) == []
    assert load_model(make_config(), path, dtype=torch.float32)  # whole for whoever loads it
    assert weights_of(path) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["iteration-0"]


def test_a_save_of_other_work_is_not_used_and_not_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, on_metric=kill_at(6))
    with pytest.raises(ConfigError, match="others by now"):
        imitate(make_config(), tmp_path, examples=make_examples(19), use_saved=True)
    path, _ = imitate(make_config(), tmp_path, use_saved=True)

    assert read_checkpoint(path).step == 4


def test_a_gradient_that_is_no_number_ends_the_tuning_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "response_loss", lambda logits, labels: logits.sum() * 0 + (logits * 0).abs().sum().sqrt())

    with pytest.raises(LossDiverged, match=r"The gradient is nan at step 1 of 12"):
        imitate(make_config(), tmp_path)


def test_checkpoints_of_ours_need_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONWEB_STUDENT_SOURCES", "/srv/models/*")
    first, _ = imitate(make_config(), tmp_path)
    second, _ = imitate(make_config(), tmp_path, iteration=1, start=first)

    assert load_model(make_config(), second, dtype=torch.float32)


def test_without_a_save_there_is_nothing_to_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no whole save"):
        imitate(make_config(), tmp_path, use_saved=True)


def test_a_damaged_parent_is_refused_by_name(tmp_path: Path) -> None:
    first, _ = imitate(make_config(), tmp_path)
    file = first / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")

    with pytest.raises(ConfigError, match=r"iteration-0 is damaged: model\.safetensors is not what was written"):
        imitate(make_config(), tmp_path, iteration=1, start=first)


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

    with pytest.raises(NoSpace, match=r"needs 18 MiB"):
        imitate(make_config(), tmp_path, on_metric=seen.append)
    assert seen == []
    assert not list(tmp_path.rglob("*checkpoint*"))


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
