"""What the run page derives from rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.board import stage_state
from experiments.templatetags.lionweb import duration, file_size, signed, sparkline
from trainer.plan import STEPS


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        (["waiting", "waiting"], "waiting"),
        (["queued", "waiting"], "queued"),
        (["finished", "waiting"], "running"),
        (["finished", "running"], "running"),
        (["finished", "crashed"], "failed"),
        (["finished", "failed"], "failed"),
        (["stopped", "waiting"], "stopped"),
        (["finished", "finished"], "finished"),
    ],
)
def test_a_stage_is_what_a_person_should_know_of_its_steps(steps, state):
    assert stage_state(steps) == state


def test_every_stage_of_the_plan_has_a_column():
    from experiments.board import STAGE_ORDER

    assert set(STAGE_ORDER) == set(STEPS)


@given(st.lists(st.floats(0, 1)))
def test_a_sparkline_stays_in_its_box(values):
    drawn = sparkline(values)
    assert "nan" not in drawn
    assert drawn.count("<circle") == bool(values)


def test_durations_are_told_in_their_two_largest_units():
    assert [duration(s) for s in (0, 59, 61, 3600, 3661, 90_000, None)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h",
        "1 h 1 min",
        "1 d 1 h",
        "\u2013",
    ]


def test_sizes_are_told_in_powers_of_a_thousand():
    assert [file_size(n) for n in (0, 999, 1_536, 3 * 2**20, 5 * 2**29)] == ["0 bytes", "999 bytes", "2 KiB", "3 MiB", "2.50 GiB"]


def test_a_difference_has_its_sign_unless_it_is_none():
    assert [signed(d) for d in (1.25, -0.5, 0.0, -0.04, None)] == ["+1.2", "\u22120.5", "0.0", "0.0", "\u2013"]
