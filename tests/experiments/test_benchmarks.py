"""Imported benchmarks: whole or not at all, once, and held against what a run makes."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from experiments import querysets_flow
from experiments.models import Benchmark, HeldOutItem
from experiments.services import benchmarks
from experiments.services.benchmarks import import_benchmark, imported_items
from tests import make
from tests.trainer.test_benchmark_sources import AGI, agieval
from trainer.benchmarks.sources import DamagedFile
from trainer.contamination import HeldOut
from trainer.errors import ConfigError
from trainer.plan import Planned, Stage, Step

pytestmark = pytest.mark.django_db


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AGIEval with two items of ours."""
    source = agieval(tmp_path, AGI, {**AGI, "question": "How many wings has a bee?"})
    monkeypatch.setitem(benchmarks.SOURCES, "agieval", source)
    return tmp_path


def test_the_items_are_held_out(person, small: Path) -> None:
    row = import_benchmark("agieval", small)
    assert (row.items.count(), row.licence) == (2, benchmarks.SOURCES["agieval"].licence)
    held_out = HeldOut(imported_items(make.make_run(person("member")).iterations.get()))
    assert held_out.overlap("How many legs has a spider").startswith("agieval aqua-rat-0000: ROUGE-L 1.00")
    assert not held_out.overlap("Name a spider that can swim")


def test_the_same_files_again_change_nothing_and_other_files_are_refused(small: Path) -> None:
    first = import_benchmark("agieval", small)
    assert import_benchmark("agieval", small).pk == first.pk
    assert HeldOutItem.objects.count() == 2
    agieval(small, AGI, {**AGI, "question": "How many wings has a fly?"})
    with pytest.raises(ConfigError, match="AGIEval was imported from other files before"):
        import_benchmark("agieval", small)
    assert "bee" in HeldOutItem.objects.last().prompt


def test_a_damaged_file_imports_nothing(small: Path) -> None:
    agieval(small, AGI, "{")
    with pytest.raises(DamagedFile, match="line 2"):
        import_benchmark("agieval", small)
    assert not Benchmark.objects.exists()


def test_the_command_says_what_came_in_and_under_which_licence(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("import_benchmark", "agieval", "--from", str(small))
    assert "AGIEval: 2 items of 1 task. Licence: MIT and Apache-2.0; logiqa-en is CC BY-NC-SA 4.0" in capsys.readouterr().out
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("import_benchmark", "agieval", "--from", str(small / "nowhere"))


def test_the_flow_page_says_what_new_instructions_were_held_against_when_they_were_made(client_of, person, small: Path) -> None:
    config = make.make_config(iterations=2)
    plain = replace(config, evaluation=replace(config.evaluation, benchmarks=()))
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES, config=plain)
    iteration = run.iterations.get(number=1)

    def page() -> str:
        return " ".join(client_of("viewer").get(f"/runs/{run.pk}/flow?iteration=1").content.decode().split())

    assert "No benchmark is imported" in page()
    assert list(imported_items(iteration)) == []
    make.do_step(run, Planned(1, Stage.GENERATION, Step.CANDIDATES), random.Random(0))
    import_benchmark("agieval", small)
    assert "In iteration 1 no benchmark was imported" in page()
    assert "Imported since, and not held against: AGIEval." in page()
    assert list(imported_items(iteration)) == []  # a step that goes on decides by what it began with
    iteration.held_against = None
    iteration.save()
    assert "was not written down then" in page()


def test_what_is_there_when_the_first_is_asked_for_is_held_against(person, small: Path) -> None:
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES, config=make.make_config(iterations=1))
    import_benchmark("agieval", small)
    assert len(list(imported_items(run.iterations.get(number=1)))) == 2
    told = querysets_flow.held_against(run, 1)
    assert told
    assert (told.titles, told.since) == (["Demo skills", "AGIEval"], [])
    off = make.make_run(person("member"), name="off", config=make.make_config(iterations=1, decontaminate=False))
    assert querysets_flow.held_against(off, 1) is None
