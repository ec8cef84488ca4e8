"""Imported benchmarks: whole or not at all, once, and held against what a run makes."""

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

pytestmark = pytest.mark.django_db


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AGIEval with two items of ours."""
    source = agieval(tmp_path, AGI, {**AGI, "question": "How many wings has a bee?"})
    monkeypatch.setitem(benchmarks.SOURCES, "agieval", source)
    return tmp_path


def test_the_items_are_held_out(small: Path) -> None:
    row = import_benchmark("agieval", small)
    assert (row.items.count(), row.licence) == (2, benchmarks.SOURCES["agieval"].licence)
    held_out = HeldOut(imported_items())
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


def test_the_flow_page_says_what_new_instructions_are_held_against(client_of, person, small: Path) -> None:
    config = make.make_config(iterations=1)
    plain = replace(config, evaluation=replace(config.evaluation, benchmarks=()))
    run = make.make_finished_run(person("member"), config=plain)
    client = client_of("viewer")
    assert "No benchmark is imported" in client.get(f"/runs/{run.pk}/flow").content.decode()
    import_benchmark("agieval", small)
    assert "overlaps with an item of AGIEval is rejected" in client.get(f"/runs/{run.pk}/flow").content.decode()
    off = make.make_run(person("member"), name="off", config=make.make_config(iterations=1, decontaminate=False))
    assert querysets_flow.held_against(off) is None
