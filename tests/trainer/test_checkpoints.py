"""Checkpoints are whole or absent, and say what made them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from trainer import checkpoints
from trainer.checkpoints import (
    MANIFEST,
    Manifest,
    find_checkpoint,
    read_checkpoint,
    readable_size,
    verify_checkpoint,
    write_checkpoint,
    writing_whole,
)
from trainer.config import config_from_dict
from trainer.errors import ConfigError, NoSpace

WEIGHTS = b"weights"


def make_manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "config": {"name": "run"},
        "method": "full",
        "base": "scratch-llama",
        "revision": "",
        "iteration": 1,
        "step": 20,
        "first_loss": 5.5,
        "last_loss": 0.5,
        "seed": 7,
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def save_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "iteration-1", make_manifest(), save_weights, weight_bytes=len(WEIGHTS))

    assert read_checkpoint(tmp_path / "iteration-1") == written
    assert set(written.files) == {"model.safetensors"}
    assert {"torch", "transformers", "peft"} <= set(written.versions)
    assert verify_checkpoint(tmp_path / "iteration-1") == []


@pytest.mark.parametrize(
    ("structured", "versions"),
    [
        ({"teacher": "text", "judges": "text"}, ("1", "1", "1")),
        ({"teacher": "json_schema", "judges": "text"}, ("1", "1", "1-json")),
        ({"teacher": "text", "judges": "json_object"}, ("1", "1-json", "1")),
        ({"teacher": "json_schema", "judges": "json_object"}, ("1", "1-json", "1-json")),
    ],
)
def test_a_checkpoint_says_which_prompts_each_role_was_told(
    tmp_path: Path, structured: dict[str, str], versions: tuple[str, str, str]
) -> None:
    endpoints = {name: {"structured": form} for name, form in structured.items()}
    config = config_from_dict({"endpoints": endpoints, "referee": {"endpoint": "judges"}})
    written = write_checkpoint(tmp_path / "c", make_manifest(config=config.as_dict()), save_weights, weight_bytes=1)
    assert tuple(written.versions[name] for name in ("prompts", "referee_prompts", "generator_prompts")) == versions


def test_the_manifest_is_plain_json_with_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", make_manifest(), save_weights, weight_bytes=1)

    assert json.loads((tmp_path / "c" / MANIFEST).read_text())["config"] == {"name": "run"}


def test_whoever_may_open_the_folder_may_read_the_weights(tmp_path: Path) -> None:
    def save_private(folder: Path) -> None:
        save_weights(folder)
        (folder / "model.safetensors").chmod(0o600)

    write_checkpoint(tmp_path / "c", make_manifest(), save_private, weight_bytes=1)

    assert (tmp_path / "c" / "model.safetensors").stat().st_mode & 0o666 == (tmp_path / "c").stat().st_mode & 0o666


def test_a_changed_weight_is_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", make_manifest(), save_weights, weight_bytes=1)
    (tmp_path / "c" / "model.safetensors").write_bytes(b"other")

    assert verify_checkpoint(tmp_path / "c") == ["model.safetensors is not what was written: its sha256 differs."]


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", make_manifest(), save_weights, weight_bytes=1)
    (tmp_path / "c" / "model.safetensors").unlink()

    assert verify_checkpoint(tmp_path / "c") == ["model.safetensors is missing."]


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    assert MANIFEST in verify_checkpoint(tmp_path)[0]
    with pytest.raises(ConfigError, match="There is no checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 1}'])
def test_a_broken_manifest_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(ConfigError, match="cannot be read"):
        read_checkpoint(tmp_path)


def test_equal_files_give_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "a", make_manifest(), save_weights, weight_bytes=1)
    second = write_checkpoint(tmp_path / "b", make_manifest(step=21), save_weights, weight_bytes=1)
    third = write_checkpoint(tmp_path / "c", make_manifest(), lambda f: (f / "model.safetensors").touch(), weight_bytes=1)

    assert first.digest == second.digest != third.digest


def test_sizes_are_told_in_powers_of_1024() -> None:
    assert [readable_size(size) for size in (0, 512, 4096, 31 * 2**20, 2.5 * 2**30)] == [
        "0 bytes",
        "512 bytes",
        "4 KiB",
        "31 MiB",
        "2.50 GiB",
    ]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 2**20)
    asked: list[Path] = []

    with pytest.raises(NoSpace, match=r"needs 2\.02 GiB in .* where 1 MiB is free"):
        write_checkpoint(tmp_path / "c", make_manifest(), asked.append, weight_bytes=2 * 2**30)

    assert asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_disk_that_runs_full_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path: Path, error: Exception) -> None:
    write_checkpoint(tmp_path / "c", make_manifest(), save_weights, weight_bytes=1)

    def run_full(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"hal")
        raise error

    with pytest.raises(NoSpace, match="ran full"):
        write_checkpoint(tmp_path / "c", make_manifest(step=40), run_full, weight_bytes=1)

    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert read_checkpoint(tmp_path / "c").step == 20
    assert verify_checkpoint(tmp_path / "c") == []


def test_the_safetensors_library_s_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    def run_full(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(NoSpace):
        write_checkpoint(tmp_path / "c", make_manifest(), run_full, weight_bytes=1)


def test_another_error_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise PermissionError("read-only")

    with pytest.raises(PermissionError):
        write_checkpoint(tmp_path / "c", make_manifest(), fail, weight_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".c.writing").mkdir()
    (tmp_path / ".c.writing" / "half").write_text("half")

    with writing_whole(tmp_path / "c", needed=1) as folder:
        (folder / "whole").write_text("whole")

    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["whole"]
