"""A checkpoint whose files were damaged after it was written: the loop tunes it again and the run ends with the same pools."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.fakes import FakeDesk, FakeStudent
from tests.trainer.tuning_cases import Killed, imitate, kill_at, make_config, weights_of
from trainer import imitation
from trainer.checkpoints import MANIFEST, digests_of, verify_checkpoint
from trainer.config import EvaluationConfig, LoopConfig, RunConfig
from trainer.errors import Cancelled, ConfigError, DamagedCheckpoint, OutOfMemory
from trainer.folder import FolderBook
from trainer.loop import distil, run_step
from trainer.models import require_name
from trainer.plan import Step, plan
from trainer.records import BenchmarkItem, Example, Instruction, Response, TuningNews
from trainer.roles import CheckpointInfo
from trainer.student import LocalStudent
from trainer.tuning import SAVE_DIGESTS, is_sharded

LOOP = RunConfig(loop=LoopConfig(iterations=2, new_per_iteration=6), evaluation=EvaluationConfig(benchmarks=("demo_skills",)))


def damage(checkpoint: Path) -> None:
    """One other byte at the end of the weights."""
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


# The loop


class CarefulStudent(FakeStudent):
    """A fake that looks at what it starts from before it does anything, as the real one does."""

    def __init__(self, folder: Path, start: Path | None) -> None:
        super().__init__(folder, start)
        self._start = start

    def _look(self) -> None:
        if self._start and not (self._start / "memory.txt").read_text().endswith("\n"):
            raise DamagedCheckpoint(f"The checkpoint {self._start} is damaged: memory.txt is not what was written.")

    def imitate(
        self, examples: Sequence[Example], *, iteration: int, tell: Callable[[TuningNews], None], use_saved: bool = False
    ) -> CheckpointInfo:
        self._look()
        return super().imitate(examples, iteration=iteration, tell=tell, use_saved=use_saved)

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        self._look()
        super().respond(instructions, done=done, keep=keep)

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        self._look()
        super().answer(items, done=done, keep=keep)


class CarefulDesk(FakeDesk):
    def student(self, *, iteration: int, start: Path | None) -> FakeStudent:
        return CarefulStudent(self.folder / "checkpoints", start)


def book_in(folder: Path) -> FolderBook:
    return FolderBook(folder, LOOP, [Instruction(key=f"seed-{n:06d}", text=f"seed{n} number{n}") for n in range(10)])


def outcome(book: FolderBook) -> list[object]:
    pools = [[(i.key, i.text) for i in book.train_pool(number)] for number in range(3)]
    said = [sorted((r.instruction, r.text) for r in book.student_responses(number).values()) for number in (1, 2)]
    memory = (book.folder / "checkpoints" / "iteration-2" / "memory.txt").read_text()
    return [pools, said, memory, [book.scores(number) for number in range(3)]]


@pytest.mark.parametrize("before", [Step.BENCHMARKS, Step.STUDENT_RESPONSES, Step.TUNING])
def test_a_damaged_checkpoint_is_tuned_again_where_it_is_needed_and_the_run_ends_as_it_would_have(tmp_path: Path, before: Step) -> None:
    undisturbed = book_in(tmp_path / "undisturbed")
    distil(undisturbed, CarefulDesk(tmp_path / "undisturbed"), LOOP)

    book, desk = book_in(tmp_path), CarefulDesk(tmp_path)
    needed = 1 if before is Step.TUNING else 0
    damaged = False
    for planned in plan(LOOP):
        if planned.step is before and planned.iteration == (0 if before is Step.BENCHMARKS else needed + 1) and not damaged:
            file = tmp_path / "checkpoints" / f"iteration-{needed}" / "memory.txt"
            file.write_text(file.read_text().rstrip("\n"))
            damaged = True
        run_step(planned, book, desk, LOOP)

    assert damaged
    assert outcome(book) == outcome(undisturbed)
    [told] = desk.notes
    assert told.endswith("memory.txt is not what was written. It was tuned again in this step, from what it started from.")


def test_what_is_damaged_anew_each_time_ends_the_run(tmp_path: Path) -> None:
    class Hopeless(CarefulStudent):
        def _look(self) -> None:
            if self._start:
                raise DamagedCheckpoint("The checkpoint is damaged.")

    class HopelessDesk(FakeDesk):
        def student(self, *, iteration: int, start: Path | None) -> FakeStudent:
            return Hopeless(self.folder / "checkpoints", start)

    with pytest.raises(DamagedCheckpoint):
        distil(book_in(tmp_path), HopelessDesk(tmp_path), LOOP)


# The student itself


def test_a_finished_checkpoint_that_was_damaged_is_tuned_again_to_the_same_weights(tmp_path: Path) -> None:
    path, _ = imitate(make_config(), tmp_path)
    weights = weights_of(path)
    damage(path)
    again, metrics = imitate(make_config(), tmp_path)
    assert metrics
    assert weights_of(again) == weights
    assert verify_checkpoint(again) == []


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_manifest_that_cannot_be_read_is_damage_too(tmp_path: Path, content: str) -> None:
    path, _ = imitate(make_config(), tmp_path)
    (path / MANIFEST).write_text(content)
    with pytest.raises(DamagedCheckpoint):
        LocalStudent(make_config(), tmp_path, path).respond([Instruction(key="a", text="upper: abc")], done=frozenset(), keep=print)
    assert verify_checkpoint(imitate(make_config(), tmp_path)[0]) == []


def test_a_student_that_starts_from_a_damaged_checkpoint_says_so_by_that_name(tmp_path: Path) -> None:
    first, _ = imitate(make_config(), tmp_path)
    damage(first)
    with pytest.raises(DamagedCheckpoint, match="iteration-0 is damaged"):
        imitate(make_config(), tmp_path, iteration=1, start=first)


KILLED_BESIDE_A_RENAME = """
import os, sys
from pathlib import Path
from tests.trainer.tuning_cases import imitate, make_config
name, moment, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
rename = Path.rename

def end_beside(path, target):
    if Path(target).name == name and moment == "before":
        os._exit(9)
    done = rename(path, target)
    if Path(target).name == name:
        os._exit(9)
    return done

Path.rename = end_beside
imitate(make_config(), folder)
"""


@pytest.mark.parametrize("name", ["checkpoint-8", "iteration-0"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_right_before_or_after_a_rename_it_ends_with_the_same_weights(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, moment: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_BESIDE_A_RENAME, name, moment, str(tmp_path)], check=False, timeout=120)
    assert killed.returncode == 9
    path, metrics = imitate(make_config(), tmp_path)
    assert bool(metrics) == ((name, moment) != ("iteration-0", "after"))
    assert weights_of(path) == weights_of(imitate(make_config(), tmp_path_factory.mktemp("undisturbed"))[0])
    assert [p.name for p in tmp_path.iterdir()] == ["iteration-0"]


# Memory


def test_memory_that_runs_out_before_the_first_step_has_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("load_trainable", "_tuning", "_write_together"):
        with monkeypatch.context() as patched:
            patched.setattr(imitation, name, too_large)
            with pytest.raises(OutOfMemory, match="There is not enough memory for tuning with"):
                imitate(make_config(device_batch_size=1), tmp_path / name)


def test_memory_that_runs_out_as_a_save_is_made_the_checkpoint_has_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, on_metric=kill_at(6))

    def too_large(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(imitation, "load_trainable", too_large)
    with pytest.raises(OutOfMemory, match="to write the save as its checkpoint"):
        imitate(make_config(), tmp_path, use_saved=True)


# What is no student


def test_a_folder_with_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    require_name(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter and no whole model"):
        require_name(str(tmp_path))


# Saves of the two kinds


def save_in(folder: Path, step: int, *, sharded: bool) -> Path:
    """A save that is whole, of one kind or the other."""
    save = folder / f"checkpoint-{step}"
    save.mkdir(parents=True)
    (save / ("pytorch_model_fsdp_0" if sharded else "model.safetensors")).write_text(f"{step} {sharded}")
    (save / SAVE_DIGESTS).write_text(json.dumps(digests_of(save)))
    return save


def test_each_kind_of_save_is_gone_on_from_by_its_own_kind_though_their_steps_are_the_same(tmp_path: Path) -> None:
    work = imitation.Work(
        config=make_config(), examples=[], iteration=0, start=None, parent=None, final=tmp_path / "iteration-0", saves=tmp_path
    )

    def goes_on_from(*, sharded: bool) -> tuple[bool, list[str]]:
        told: list[str] = []
        save = imitation._save_to_go_on_from(work, lambda news: told.append(getattr(news, "text", "")), sharded=sharded)
        return save is not None and is_sharded(save) == sharded, told

    save_in(tmp_path, 8, sharded=True)
    found, told = goes_on_from(sharded=False)
    assert not found
    assert "so it begins at the beginning. The save is kept" in told[0]
    save_in(tmp_path, 8, sharded=False)
    found, told = goes_on_from(sharded=True)
    assert found
    assert "so it begins at step 8." in told[0]
    assert goes_on_from(sharded=True) == (True, [])
    assert goes_on_from(sharded=False)[0]
    assert goes_on_from(sharded=True)[0]


def test_two_workers_do_not_tune_in_one_folder_at_once(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(Cancelled, match="while another worker was tuning"):
            imitate(make_config(), tmp_path, should_stop=lambda: True)
    finally:
        os.close(handle)
    assert verify_checkpoint(imitate(make_config(), tmp_path)[0]) == []


def test_a_tuning_whose_start_is_gone_throws_no_save_away(tmp_path: Path) -> None:
    first, _ = imitate(make_config(), tmp_path)
    with pytest.raises(Killed):
        imitate(make_config(), tmp_path, iteration=1, start=first, on_metric=kill_at(6))
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="which this tuning starts from, is not there any more"):
        imitate(make_config(), tmp_path, iteration=1, start=first)
    assert (tmp_path / ".iteration-1.work" / "checkpoint-4").is_dir()
