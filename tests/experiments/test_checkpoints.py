"""Checkpoints: what a policy may delete, that a deletion touches nothing else, and what a worker makes of what was asked."""

import os
import shutil
from pathlib import Path

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from experiments.checkpoint_work import WORK, card_of
from experiments.errand_runner import run_errand
from experiments.models import Answer, Checkpoint, Errand, ErrandKind, Job, Question
from experiments.services import checkpoint_files, checkpoints, errands
from experiments.services.book import PostgresBook
from experiments.services.retention import (
    BASE,
    BEST,
    BUSY,
    LAST,
    NEWEST,
    PINNED,
    START,
    UNMEASURED,
    Kept,
    Policy,
    Save,
    make_plan,
    protected,
    why_not,
)
from experiments.states import JobState
from tests import make
from tests.stack import wait_until
from trainer.checkpoints import MANIFEST, Manifest, read_checkpoint, write_checkpoint
from trainer.errors import ConfigError
from trainer.plan import Stage, Step
from trainer.roles import CheckpointInfo

# The plan

BENCHMARKS = ("demo_skills", "other")


@st.composite
def holdings(draw):
    """Up to eight checkpoints of three runs, some of them adapters on another one."""
    places = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), unique=True, max_size=8))
    paths = [f"runs/{run}/checkpoints/iteration-{number}" for run, number in places]
    score = st.dictionaries(st.sampled_from(BENCHMARKS), st.floats(0, 1))
    return [
        Kept(
            id=at, run=run, iteration=number, path=paths[at], size=draw(st.integers(0, 100)), pinned=draw(st.booleans()),
            busy=draw(st.booleans()), base=draw(st.sampled_from(["", *paths])), scores=draw(score),
        )
        for at, (run, number) in enumerate(places)
    ]  # fmt: skip


saves = st.lists(st.builds(Save, run=st.integers(1, 3), iteration=st.integers(0, 4), size=st.integers(0, 100), finished=st.booleans()))
policies = st.builds(Policy, keep_last=st.none() | st.integers(0, 4), keep_best=st.sampled_from(["", *BENCHMARKS]), saves=st.booleans())
unfinished_runs = st.sets(st.integers(1, 3))


@given(holdings(), saves, policies, unfinished_runs, st.data())
def test_no_policy_deletes_what_is_still_needed(kept, saves, policy, unfinished, data):
    starts = data.draw(st.sets(st.sampled_from([one.path for one in kept])) if kept else st.just(set()))
    plan = make_plan(kept, saves, policy, unfinished=unfinished, starts=starts)
    gone = set(plan.delete)
    assert gone.isdisjoint(plan.keep)
    assert gone | set(plan.keep) == {one.id for one in kept}
    going_on = {one.path for one in kept if one.id not in gone}
    for one in kept:
        newer = [other for other in kept if other.run == one.run and other.iteration > one.iteration]
        if one.pinned or one.busy or one.path in starts or (one.run in unfinished and not newer):
            assert one.id not in gone
        if one.id not in gone and one.base in {other.path for other in kept}:
            assert one.base in going_on  # an adapter that stays has its base
        if policy.keep_last is None or len(newer) < policy.keep_last:
            assert one.id not in gone
    old = {(save.run, save.iteration) for save in saves if save.finished} if policy.saves else set()
    assert set(plan.saves) == old
    assert plan.frees == sum(one.size for one in kept if one.id in gone) + sum(
        save.size for save in saves if (save.run, save.iteration) in old
    )


@given(holdings(), policies, unfinished_runs)
def test_after_a_plan_the_same_policy_has_nothing_more_to_delete(kept, policy, unfinished):
    plan = make_plan(kept, [], policy, unfinished=unfinished)
    left = [one for one in kept if one.id not in plan.delete]
    assert list(make_plan(left, [], policy, unfinished=unfinished).delete) == []


@given(holdings(), unfinished_runs)
def test_whatever_is_protected_cannot_be_deleted_by_hand_either(kept, unfinished):
    for pk in protected(kept, unfinished=unfinished):
        assert why_not(pk, kept, unfinished=unfinished)


def kept(pk, *, run=1, **values):
    return Kept(id=pk, run=run, iteration=pk, path=f"runs/{run}/{pk}", size=10, **values)


def test_each_one_that_stays_has_its_reason():
    plan = make_plan(
        [
            kept(0, pinned=True), kept(1, busy=True), kept(2, scores={"demo_skills": 0.9}), kept(3, scores={"demo_skills": 0.8}), kept(4),
            kept(5, run=2), kept(6, run=2, base="runs/2/5"), kept(7, run=3), kept(8, run=3), kept(9, run=3),
        ],
        [],
        Policy(keep_last=1, keep_best="demo_skills"),
        unfinished={2},
        starts={"runs/3/7"},
    )  # fmt: skip
    assert plan.keep == {0: PINNED, 1: BUSY, 2: BEST, 4: NEWEST, 5: BASE, 6: LAST, 7: START, 9: NEWEST}
    assert list(plan.delete) == [3, 8]
    assert plan.frees == 20


def test_an_adapter_that_goes_lets_its_base_go():
    rows = [kept(0), kept(1, base="runs/1/0"), kept(2)]
    assert list(make_plan(rows, [], Policy(keep_last=1), unfinished=()).delete) == [0, 1]
    assert why_not(0, rows, unfinished=()) == BASE
    assert why_not(1, rows, unfinished=()) == ""


# Files


@pytest.fixture
def data(settings, tmp_path):
    """A data folder of the test's own."""
    settings.LIONWEB_DATA = tmp_path.resolve() / "data"
    settings.LIONWEB_DATA.mkdir()
    return settings.LIONWEB_DATA


@pytest.fixture
def run(person, data):
    """A finished run with a checkpoint on the disk after each of three iterations."""
    run = make.make_finished_run(person("member"))
    for row in Checkpoint.objects.order_by("pk"):
        write_files(row)
    return run


def write_files(row: Checkpoint, *, method: str = "full", base: str = "scratch-llama") -> Manifest:
    """A checkpoint's folder without weights that any model would load."""

    def save(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(os.urandom(100) + str(row.pk).encode())
        (folder / "config.json").write_text("{}")

    manifest = Manifest(
        config=row.iteration.run.config, method=method, base=base, revision="", iteration=row.iteration.number, step=row.step,
        first_loss=row.first_loss, last_loss=row.last_loss, seed=7,
    )  # fmt: skip
    folder = checkpoint_files.folder_of(row)
    written = write_checkpoint(folder, manifest, save, weight_bytes=1)
    Checkpoint.objects.filter(pk=row.pk).update(manifest=vars(read_checkpoint(folder)), size_bytes=checkpoint_files.size_of(folder))
    return written


def of(run, number) -> Checkpoint:
    return Checkpoint.objects.select_related("iteration__run").get(iteration__run=run, iteration__number=number)


def folder_of(run, number) -> Path:
    return checkpoint_files.folder_of(of(run, number))


def test_a_policy_deletes_what_it_showed_and_the_rows_say_so(run, data):
    plan = checkpoints.read_holdings().plan(Policy(keep_last=1))
    assert list(plan.delete) == [of(run, 0).pk, of(run, 1).pk]
    assert plan.frees == of(run, 0).size_bytes + of(run, 1).size_bytes
    freed = checkpoints.carry_out(Policy(keep_last=1), ids=plan.delete)
    assert (freed.checkpoints, freed.size, freed.problems) == (2, plan.frees, [])
    assert [folder_of(run, number).exists() for number in range(3)] == [False, False, True]
    assert [of(run, number).deleted_at is not None for number in range(3)] == [True, True, False]
    assert run.iterations.count() == 3


def test_what_was_not_shown_is_not_deleted(run):
    freed = checkpoints.carry_out(Policy(keep_last=0), ids=[of(run, 1).pk])
    assert freed.checkpoints == 1
    assert [folder_of(run, number).exists() for number in range(3)] == [True, False, True]


def test_what_was_pinned_after_it_was_shown_stays(run):
    shown = checkpoints.read_holdings().plan(Policy(keep_last=0)).delete
    checkpoints.pin(of(run, 0), pinned=True)
    checkpoints.carry_out(Policy(keep_last=0), ids=shown)
    assert [folder_of(run, number).exists() for number in range(3)] == [True, False, False]


def test_deleting_twice_is_deleting_once(run):
    checkpoints.delete(of(run, 0).pk)
    when = of(run, 0).deleted_at
    freed = checkpoints.delete(of(run, 0).pk)
    assert (freed.size, freed.problems) == (0, [])
    assert of(run, 0).deleted_at == when


def test_files_that_are_gone_already_are_no_failure(run):
    (folder_of(run, 0) / "config.json").unlink()
    assert checkpoints.delete(of(run, 0).pk).problems == []
    assert not folder_of(run, 0).exists()


def test_one_file_that_cannot_be_deleted_keeps_none_of_the_others_and_is_named(run, monkeypatch):
    real = os.unlink

    def refuse(path, *args, **options):
        if str(path).endswith("config.json"):
            raise PermissionError(13, "Permission denied")
        real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.os, "unlink", refuse)
        freed = checkpoints.carry_out(Policy(keep_last=1), ids=[of(run, 0).pk, of(run, 1).pk])
    assert freed.checkpoints == 0  # what is left of each is still to go
    assert len([problem for problem in freed.problems if "config.json could not be deleted: Permission denied." in problem]) == 2
    left = [path.name for path in (folder_of(run, 0).parent).rglob("*") if path.is_file() and "iteration-2" not in str(path)]
    assert left == ["config.json", "config.json"]
    assert checkpoints.delete(of(run, 0).pk).problems == []  # once that is mended, deleting again ends it
    assert not folder_of(run, 0).with_name(".iteration-0.deleted").exists()


def test_a_link_out_of_the_data_folder_is_left_alone(run, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").touch()
    folder = folder_of(run, 0)
    checkpoint_files.remove(folder)
    folder.symlink_to(outside)
    freed = checkpoints.carry_out(Policy(keep_last=1), ids=[of(run, 0).pk, of(run, 1).pk])
    assert "a link leads out of it" in freed.problems[0]
    assert (outside / "file").exists()
    assert of(run, 0).deleted_at is None
    assert not folder_of(run, 1).exists()  # the other one went all the same


def test_a_link_inside_a_checkpoint_is_deleted_and_not_followed(run, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").touch()
    (folder_of(run, 0) / "link").symlink_to(outside)
    (folder_of(run, 0) / "other").symlink_to(outside / "file")
    assert checkpoints.delete(of(run, 0).pk).problems == []
    assert (outside / "file").exists()
    assert not folder_of(run, 0).exists()


@pytest.mark.parametrize(
    "path", ["", ".", "runs", "runs/{run}", "../x", "runs/{run}/../../x", "/etc", "runs/999999/checkpoints/iteration-0", "postgres"]
)
def test_a_row_that_names_another_place_deletes_nothing(run, data, path):
    (data / "x").mkdir()
    row = of(run, 0)
    Checkpoint.objects.filter(pk=row.pk).update(path=path.format(run=run.pk))
    freed = checkpoints.Freed()
    checkpoints._delete_into(freed, row.pk)
    assert "Left alone" in freed.problems[0]
    assert (data / "x").exists()
    assert (data / "runs" / str(run.pk)).exists()


def test_exports_go_with_their_checkpoint_and_linked_bytes_count_once(run, person):
    errand = done(of(run, 0), ErrandKind.MERGED, person)
    assert checkpoint_files.export_folder(errand).is_dir()
    size = next(one.size for one in checkpoints.read_holdings().kept if one.id == of(run, 0).pk)
    freed = checkpoints.delete(of(run, 0).pk)
    assert freed.size == size
    assert not checkpoint_files.exports_of(of(run, 0).pk).exists()


def test_saves_of_finished_tunings_go_and_others_stay(run, data):
    folder = data / "runs" / str(run.pk) / "checkpoints"
    for number in (0, 1, 7):
        (folder / f".iteration-{number}.work").mkdir(parents=True)
        (folder / f".iteration-{number}.work" / "state").write_bytes(b"x" * 50)
    (folder / ".iteration-x.work").mkdir()
    make.make_job(run.iterations.get(number=1), Stage.IMITATION, Step.PREFLIGHT, state=JobState.QUEUED)
    plan = checkpoints.read_holdings().plan(Policy(keep_last=None, saves=True))
    assert (list(plan.saves), plan.frees) == ([(run.pk, 0)], 50)
    at_work = make.make_job(run.iterations.get(number=1), Stage.EVALUATION, Step.BENCHMARKS, state=JobState.RUNNING)
    assert not checkpoints.read_holdings().plan(Policy(keep_last=None, saves=True)).saves  # it may tune a damaged one again
    at_work.delete()
    freed = checkpoints.carry_out(Policy(keep_last=None, saves=True), ids=[], saves=[(run.pk, 7)])
    assert (freed.saves, freed.size) == (0, 0)  # what was not shown does not go
    freed = checkpoints.carry_out(Policy(keep_last=None, saves=True), ids=[], saves=plan.saves)
    assert (freed.saves, freed.size) == (1, 50)
    assert sorted(path.name for path in folder.glob(".iteration-*")) == [".iteration-1.work", ".iteration-7.work", ".iteration-x.work"]


# What is needed, read from the rows


def test_a_checkpoint_whose_benchmarks_are_not_over_stays(person, data):
    run = make.make_run_until(person("member"), 2, Step.TUNING)
    for row in Checkpoint.objects.all():
        write_files(row)
    Job.objects.filter(stage__iteration__number=0, step=Step.BENCHMARKS).update(state=JobState.FAILED)
    plan = checkpoints.read_holdings().plan(Policy(keep_last=0))
    assert (list(plan.delete), plan.keep) == ([], {of(run, 0).pk: UNMEASURED, of(run, 1).pk: LAST})


def test_the_last_checkpoint_of_a_run_that_can_go_on_stays(person, data):
    run = make.make_run_until(person("member"), 2, Step.TUNING)
    for row in Checkpoint.objects.all():
        write_files(row)
    plan = checkpoints.read_holdings().plan(Policy(keep_last=0))
    assert (list(plan.delete), plan.keep) == ([of(run, 0).pk], {of(run, 1).pk: LAST})
    with pytest.raises(ConfigError, match=LAST):
        checkpoints.delete(of(run, 1).pk)


def test_the_base_under_an_adapter_stays(run):
    write_files(of(run, 2), method="lora", base=str(folder_of(run, 0)))
    assert checkpoints.read_holdings().plan(Policy(keep_last=1)).keep == {of(run, 0).pk: BASE, of(run, 2).pk: NEWEST}
    with pytest.raises(ConfigError, match=BASE):
        checkpoints.delete(of(run, 0).pk)


def test_a_checkpoint_that_another_unfinished_run_begins_with_stays(run, person):
    begin_with(folder_of(run, 0), person)
    assert checkpoints.read_holdings().why_not(of(run, 0).pk) == START


def begin_with(folder, person, *, name="other"):
    """A run that was not started yet, on a student in this folder."""
    other = make.make_run(person("member"), name=name)
    other.config["student"]["model"] = str(folder)
    other.save()
    return other


def test_a_checkpoint_whose_export_another_unfinished_run_begins_with_stays(run, person, data):
    export = checkpoint_files.export_folder(done(of(run, 0), ErrandKind.MERGED, person))
    other = begin_with(export, person)
    assert checkpoints.read_holdings().plan(Policy(keep_last=1)).keep == {of(run, 0).pk: START, of(run, 2).pk: NEWEST}
    with pytest.raises(ConfigError, match=START):
        checkpoints.delete(of(run, 0).pk)
    other.config["student"]["model"] = f"{data}/runs/../exports/{export.parent.name}/{export.name}/"  # however it was typed
    other.save()
    assert checkpoints.read_holdings().why_not(of(run, 0).pk) == START
    other.delete()
    checkpoints.delete(of(run, 0).pk)


def test_a_checkpoint_whose_export_is_the_base_under_an_adapter_stays(run, person):
    export = checkpoint_files.export_folder(done(of(run, 0), ErrandKind.MERGED, person))
    write_files(of(run, 2), method="lora", base=str(export))
    assert checkpoints.read_holdings().plan(Policy(keep_last=1)).keep == {of(run, 0).pk: BASE, of(run, 2).pk: NEWEST}
    with pytest.raises(ConfigError, match=BASE):
        checkpoints.delete(of(run, 0).pk)


def test_an_export_that_a_run_or_an_adapter_needs_is_not_deleted_and_says_for_which(run, person):
    errand = done(of(run, 0), ErrandKind.MERGED, person)
    export = checkpoint_files.export_folder(errand)
    other = begin_with(export, person, name="Second round")
    with pytest.raises(ConfigError, match="run Second round is not finished and begins with it"):
        checkpoints.delete_export(errand)
    other.delete()
    write_files(of(run, 2), method="lora", base=str(export))
    with pytest.raises(ConfigError, match=f"the adapter of run {run.name}, iteration 2, needs it as its base"):
        checkpoints.delete_export(errand)
    assert export.is_dir()
    assert "deleted" not in Errand.objects.get().result
    checkpoints.delete(of(run, 2).pk)
    assert checkpoints.delete_export(errand) == []
    assert not export.exists()


def test_a_checkpoint_somebody_asked_something_of_stays(run, person):
    errands.ask(ErrandKind.MERGED, of(run, 0), by=person("member"))
    speaker = of(run, 1)
    question = Question.objects.create(checkpoint=of(run, 2), asked_by=person("member"), text="hello")
    asked = errands.ask(ErrandKind.ANSWER, of(run, 2), by=person("member"))
    Answer.objects.create(question=question, speaker="earlier", checkpoint=speaker, errand=asked)
    plan = checkpoints.read_holdings().plan(Policy(keep_last=0))
    assert plan.keep == {of(run, number).pk: BUSY for number in range(3)}
    freed = checkpoints.Freed()
    checkpoints._delete_into(freed, speaker.pk)  # asked for after the plan was made
    assert "in the meantime" in freed.problems[0]
    assert folder_of(run, 1).exists()


# Asking and doing


def done(checkpoint, kind, person, **options) -> Errand:
    errand = checkpoints.ask(checkpoint.pk, kind, by=person("member"), **options)
    held = errands.claim(errand.pk, worker="one")
    assert held is not None
    result = WORK[kind](held, Pulse())
    errands.end(held, JobState.FINISHED, result=result)
    return Errand.objects.select_related("checkpoint__iteration__run").get(pk=errand.pk)


class Pulse:
    cancelled = False

    def tell(self, note: str) -> None:
        """Nobody listens."""


def test_a_merged_export_lists_its_files(run, person):
    errand = done(of(run, 1), ErrandKind.MERGED, person)
    assert errand.result["path"] == f"exports/{of(run, 1).pk}/merged-{errand.pk}"
    assert sorted(errand.result["files"]) == ["README.md", "config.json", "model.safetensors"]
    assert (checkpoint_files.export_folder(errand) / "README.md").read_text() == card_of(of(run, 1), as_merged=True)


def test_the_card_tells_pool_licence_teacher_and_scores(run):
    card = card_of(of(run, 1))
    for words in ("pool of 12", "CC0-1.0", "offline-teacher", "demo_skills", "## Limits"):
        assert words in card


def test_the_same_export_is_not_asked_for_twice_but_again_once_it_was_deleted(run, person):
    errand = done(of(run, 0), ErrandKind.MERGED, person)
    with pytest.raises(ConfigError, match="there already"):
        checkpoints.ask(of(run, 0).pk, ErrandKind.MERGED, by=person("member"))
    assert checkpoints.delete_export(errand) == []
    checkpoints.ask(of(run, 0).pk, ErrandKind.MERGED, by=person("member"))
    with pytest.raises(ConfigError, match="is not over"):
        checkpoints.ask(of(run, 0).pk, ErrandKind.MERGED, by=person("member"))


def test_an_export_that_went_with_its_checkpoint_is_made_anew_once_that_was_brought_back(run, person, settings, tmp_path):
    settings.LIONWEB_STORAGE_URL = (tmp_path / "share").as_uri()
    first = done(of(run, 0), ErrandKind.MERGED, person)
    done(of(run, 0), ErrandKind.STORE, person)
    checkpoints.delete(of(run, 0).pk)
    assert Errand.objects.get(pk=first.pk).result["deleted"]
    done(of(run, 0), ErrandKind.RESTORE, person)
    second = done(of(run, 0), ErrandKind.MERGED, person)
    assert (checkpoint_files.export_folder(second) / "model.safetensors").is_file()


def test_an_export_whose_folder_is_gone_is_asked_for_again(run, person):
    shutil.rmtree(checkpoint_files.export_folder(done(of(run, 0), ErrandKind.MERGED, person)))
    checkpoints.ask(of(run, 0).pk, ErrandKind.MERGED, by=person("member"))


@pytest.mark.parametrize("kind", [ErrandKind.MERGED, ErrandKind.VERIFY, ErrandKind.STORE, ErrandKind.PUSH])
def test_nothing_is_asked_of_deleted_files(run, person, kind):
    checkpoints.delete(of(run, 0).pk)
    with pytest.raises(ConfigError, match="were deleted"):
        checkpoints.ask(of(run, 0).pk, kind, by=person("member"), repo="a/b")
    assert not Errand.objects.exists()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ErrandKind.ADAPTER, "no adapter"),
        (ErrandKind.GGUF, "LIONWEB_LLAMA_CPP"),
        (ErrandKind.STORE, "LIONWEB_STORAGE_URL"),
        (ErrandKind.RESTORE, "no copy"),
        (ErrandKind.PUSH, "no name of a repository"),
    ],
)
def test_what_cannot_be_had_is_told_before_it_is_queued(run, person, kind, words):
    with pytest.raises(ConfigError, match=words):
        checkpoints.ask(of(run, 0).pk, kind, by=person("member"), repo="no name")
    assert not Errand.objects.exists()


def test_a_verified_checkpoint_is_sound_until_a_file_changes(run, person):
    assert done(of(run, 0), ErrandKind.VERIFY, person).result == {"problems": []}
    (folder_of(run, 0) / "config.json").write_text("{ }")
    assert done(of(run, 0), ErrandKind.VERIFY, person).result == {"problems": ["config.json is not what was written: its sha256 differs."]}
    write_files_elsewhere = {**of(run, 1).manifest, "files": {"other": "0"}}
    Checkpoint.objects.filter(pk=of(run, 1).pk).update(manifest=write_files_elsewhere)
    assert "other files" in done(of(run, 1), ErrandKind.VERIFY, person).result["problems"][0]


def test_a_stored_checkpoint_comes_back_after_it_was_deleted(run, person, settings, tmp_path):
    settings.LIONWEB_STORAGE_URL = (tmp_path / "share").as_uri()
    before = {path.name: path.read_bytes() for path in folder_of(run, 0).iterdir()}
    done(of(run, 0), ErrandKind.STORE, person)
    assert of(run, 0).stored_at.startswith(f"{settings.LIONWEB_STORAGE_URL}/{of(run, 0).path}-")
    checkpoints.delete(of(run, 0).pk)
    done(of(run, 0), ErrandKind.RESTORE, person)
    assert of(run, 0).deleted_at is None
    assert {path.name: path.read_bytes() for path in folder_of(run, 0).iterdir()} == before


def test_another_checkpoint_of_the_same_run_id_and_iteration_overwrites_no_copy(run, person, settings, tmp_path):
    settings.LIONWEB_STORAGE_URL = (tmp_path / "share").as_uri()
    before = {path.name: path.read_bytes() for path in folder_of(run, 0).iterdir()}
    done(of(run, 0), ErrandKind.STORE, person)
    ours = of(run, 0)
    checkpoint_files.remove(folder_of(run, 0))
    write_files(of(run, 0))  # as in another installation, or with a new database
    done(of(run, 0), ErrandKind.STORE, person)
    assert of(run, 0).stored_at != ours.stored_at
    Checkpoint.objects.filter(pk=ours.pk).update(stored_at=ours.stored_at, manifest=ours.manifest)
    checkpoints.delete(ours.pk)
    done(of(run, 0), ErrandKind.RESTORE, person)
    assert {path.name: path.read_bytes() for path in folder_of(run, 0).iterdir()} == before


def test_a_copy_again_takes_no_more_room(run, person, settings, tmp_path):
    settings.LIONWEB_STORAGE_URL = (tmp_path / "share").as_uri()
    first, second = (done(of(run, 0), ErrandKind.STORE, person).result for _ in range(2))
    assert first == second


def test_a_copy_from_before_copies_had_names_of_their_own_comes_back(run, person, settings, tmp_path):
    settings.LIONWEB_STORAGE_URL = (tmp_path / "share").as_uri()
    row = of(run, 0)
    shutil.copytree(folder_of(run, 0), tmp_path / "share" / row.path)
    Checkpoint.objects.filter(pk=row.pk).update(stored_at=f"{settings.LIONWEB_STORAGE_URL}/{row.path}")
    checkpoints.delete(row.pk)
    done(of(run, 0), ErrandKind.RESTORE, person)
    assert (folder_of(run, 0) / "model.safetensors").is_file()


@pytest.mark.django_db(transaction=True)
def test_a_damaged_checkpoint_fails_its_export_in_a_sentence(run, person):
    (folder_of(run, 0) / "model.safetensors").unlink()
    errand = checkpoints.ask(of(run, 0).pk, ErrandKind.MERGED, by=person("member"))
    assert run_errand(errand.pk, worker="one", work=WORK) == JobState.FAILED
    assert "model.safetensors is missing." in Errand.objects.get().reason


def test_a_worker_of_the_gpu_queue_does_what_was_asked(celery_workers, person):
    run = make.make_finished_run(person("member"), config=make.make_config(iterations=0))
    write_files(of(run, 0))
    errand = checkpoints.ask(of(run, 0).pk, ErrandKind.MERGED, by=person("member"))
    wait_until(lambda: Errand.objects.get().state == JobState.FINISHED, timeout_s=60, what="the export")
    assert (checkpoint_files.export_folder(errand) / "model.safetensors").is_file()
    checkpoints.delete(of(run, 0).pk)


# The book


@pytest.mark.django_db(transaction=True)
def test_the_book_knows_what_a_checkpoint_was_tuned_from(run, data):
    first = of(run, 0)
    Checkpoint.objects.filter(iteration__number__gt=0).delete()
    folder = data / "runs" / str(run.pk) / "checkpoints" / "iteration-1"
    manifest = Manifest(
        config=run.config, method="full", base="x", revision="", iteration=1, step=3, first_loss=2.0, last_loss=1.0, seed=1,
        parent=str(data / first.path),
    )  # fmt: skip
    write_checkpoint(folder, manifest, lambda path: (path / "model.safetensors").touch(), weight_bytes=1)
    job = make.make_job(run.iterations.get(number=1), Stage.GENERATION, Step.TUNING)
    book = PostgresBook(job)
    book.keep_checkpoint(1, CheckpointInfo(path=folder, step=3, first_loss=2.0, last_loss=1.0))
    book.close()
    assert of(run, 1).parent == first
    assert list(first.children.all()) == [of(run, 1)]
    assert (folder / MANIFEST).is_file()
    assert of(run, 1).created_at <= timezone.now()
