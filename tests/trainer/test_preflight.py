"""A student that cannot be tuned is found before anything is paid or learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.tuning_cases import make_config
from trainer import checkpoints, preflight
from trainer.config import RunConfig
from trainer.errors import ConfigError, NoSpace, OutOfMemory
from trainer.models import SOURCES_VARIABLE, byte_tokenizer, scratch_llama
from trainer.student import LocalStudent

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student as a person has it: a folder with a model and its tokenizer."""
    path = tmp_path_factory.mktemp("student")
    scratch_llama(make_config()).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def of(model: Path | str, **settings: object) -> RunConfig:
    return make_config(student={"model": str(model)}, **settings)


def check(config: RunConfig, folder: Path) -> preflight.Preflight:
    return LocalStudent(config, folder).check()


def test_what_is_counted_is_counted_without_loading_the_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shape").mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "shape" / file.name).write_bytes(file.read_bytes())
    found = check(of(tmp_path / "shape"), tmp_path)

    assert (found.parameters, found.trainable, found.context) == (41_824, 41_824, 2048)
    assert (found.weights, found.gradients, found.optimizer) == (4 * 41_824, 4 * 41_824, 8 * 41_824)
    assert found.memory > 2**30
    assert found.problems == ()


def test_the_scratch_student_needs_no_folder(tmp_path: Path) -> None:
    assert check(make_config(), tmp_path).model == "scratch-llama"


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").write_text("hello")

    with pytest.raises(ConfigError, match=r"notes.*student\.model") as refusal:
        check(of(tmp_path / "notes"), tmp_path)
    assert set(refusal.value.fields) == {"student.model"}


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    endless.mkdir()
    for file in folder.iterdir():
        (endless / file.name).write_bytes(file.read_bytes())
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (endless / "tokenizer_config.json").write_text(json.dumps(settings))

    with pytest.raises(ConfigError, match="no end token"):
        check(of(endless), tmp_path)


def test_a_length_beyond_the_student_s_is_refused_with_what_to_set(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"imitation\.max_length to 2048") as refusal:
        check(of(folder, max_length=4096), tmp_path)
    assert set(refusal.value.fields) == {"imitation.max_length"}


def test_a_chat_form_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).write_bytes(file.read_bytes())

    with pytest.raises(ConfigError, match=r"student\.template to 'paper'"):
        check(of(plain), tmp_path)


def test_what_is_counted_and_does_not_fit_ends_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "device_memory", lambda processes: 500_000)

    with pytest.raises(OutOfMemory, match=r"41,824 parameters cannot be tuned here.*student\.method to lora"):
        check(make_config(), tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_on_any_kind_of_layer_is_counted_as_it_will_be(folder: Path, tmp_path: Path, kind: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from trainer.imitation import load_trainable

    student = folder
    if kind == "gpt2":  # whose layers are of another class
        student = tmp_path / "gpt2"
        shape = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=2048, bos_token_id=256, eos_token_id=257)
        GPT2LMHeadModel(shape).save_pretrained(student)
        byte_tokenizer().save_pretrained(student)
    config = make_config(student={"model": str(student), "method": "lora", "lora_rank": 4})
    model = load_trainable(config, None, iteration=0)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)

    found = check(config, tmp_path)
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.weights == 4 * (found.trainable + frozen) == preflight.weight_bytes(config, model, found.trainable)


def test_four_bits_are_for_linear_layers_alone() -> None:
    config = make_config()
    model = scratch_llama(config)
    linear = 2 * (4 * 32 * 32 + 3 * 32 * 88)
    qlora = replace(config, student=replace(config.student, method="qlora"))

    assert preflight.weight_bytes(qlora, model, 0) == int(0.56 * linear) + 4 * (41_824 - linear)


def test_half_precision_computes_with_copies_and_scores_in_full() -> None:
    full, half = make_config(), make_config(student={"precision": "bf16"})
    model = scratch_llama(full)

    assert (preflight.copy_bytes(full, 1000), preflight.copy_bytes(half, 1000)) == (0, 2000)
    scores = [preflight.activation_bytes(c, model, tokens=0, scored=10) for c in (full, half)]
    assert scores == [10 * 259 * 8, 10 * 259 * 8]


def test_what_the_libraries_take_is_counted_where_there_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = scratch_llama(make_config())
    monkeypatch.setattr(preflight, "device", lambda: torch.device("cpu"))
    assert preflight.library_bytes(model) > 100 * 2**20
    monkeypatch.setattr(preflight, "device", lambda: torch.device("cuda"))
    assert preflight.library_bytes(model) == 0


def test_small_steps_take_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scratch_llama(make_config())
    monkeypatch.setattr(preflight, "matmul_speed", lambda config: 1e18)
    seconds = preflight._seconds(make_config(), model, tokens=1000, batches=100, steps=50, trainable=41_824)

    assert seconds == pytest.approx(100 * 3 * preflight.LAYER_S, rel=0.1)


def test_several_cards_share_out_what_one_could_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "device_memory", lambda processes: 500_000)
    found = check(make_config(processes=2, sharding="full"), tmp_path)

    assert (found.processes, found.optimizer) == (2, 4 * 41_824)


def test_a_team_s_accelerate_config_says_how_many_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accelerate.yaml").write_text("distributed_type: FSDP\nnum_processes: 8\n")
    monkeypatch.setenv("LIONWEB_ACCELERATE_CONFIG", str(tmp_path / "accelerate.yaml"))
    found = check(make_config(), tmp_path)

    assert (found.processes, found.weights) == (8, 4 * 41_824 // 8)


def test_what_is_only_estimated_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "device_memory", lambda processes: 16 * 41_824 + 1000)

    assert "Memory is tight" in " ".join(check(make_config(), tmp_path).problems)


def test_a_disk_without_room_for_all_iterations_ends_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 1000)

    with pytest.raises(NoSpace, match="A checkpoint for each iteration"):
        check(make_config(), tmp_path)


def test_qlora_without_a_card_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"QLoRA needs a CUDA card.*student\.method to lora"):
        check(make_config(student={"method": "qlora"}), tmp_path)


@pytest.mark.parametrize(("allowed", "fine"), [("", True), ("{parent}/*", True), ("/srv/models/* HuggingFaceTB/*", False)])
def test_students_come_from_allowed_sources(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, fine: bool
) -> None:
    monkeypatch.setenv(SOURCES_VARIABLE, allowed.format(parent=folder.parent))
    if fine:
        assert check(of(folder), tmp_path).parameters
    else:
        with pytest.raises(ConfigError, match="not allowed on this worker"):
            check(of(folder), tmp_path)


def test_a_link_does_not_lead_out_of_what_is_allowed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(folder)
    monkeypatch.setenv(SOURCES_VARIABLE, f"{tmp_path}/allowed/*")

    with pytest.raises(ConfigError, match="not allowed"):
        check(of(tmp_path / "allowed" / "link"), tmp_path)


def test_processes_that_cannot_share_the_batch_evenly_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"imitation\.processes: 3 processes cannot share a batch of 8 examples evenly"):
        make_config(processes=3)
    (tmp_path / "accelerate.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    monkeypatch.setenv("LIONWEB_ACCELERATE_CONFIG", str(tmp_path / "accelerate.yaml"))
    with pytest.raises(ConfigError, match="A batch of 8 cannot be shared evenly by 3 processes"):
        check(make_config(), tmp_path)


def test_sharding_an_adapter_is_refused_by_the_config() -> None:
    config = make_config()
    with pytest.raises(ConfigError, match=r"imitation\.sharding"):
        make_config(student={"method": "lora"}, sharding="full", processes=2)
    assert replace(config).imitation.sharding == "none"
