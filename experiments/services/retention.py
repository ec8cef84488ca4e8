"""Which checkpoints may go: a policy, what it would free, and the reason for each one that stays. Pure: rows in, a plan out.

What no policy touches: a pinned checkpoint, one that an errand is at work on or that is still measured, the last one of a run that may
still go on, one that such a run begins with, and the base of an adapter that stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PINNED = "pinned"
BUSY = "somebody asked something of it that is not over"
UNMEASURED = "its benchmarks are not over"
LAST = "its run is not finished and goes on from it"
START = "a run that is not finished begins with it"
BASE = "an adapter that stays needs it as its base"
NEWEST = "one of the last of its run"
BEST = "the best of its run"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A checkpoint with files. base: the path of the checkpoint under its adapter, or whose export is; else empty.

    scores: benchmark -> score; size: in bytes, its exports included; unmeasured: its run still measures it, or will when it is resumed.
    """

    id: int
    run: int
    iteration: int
    path: str
    size: int
    pinned: bool = False
    busy: bool = False
    unmeasured: bool = False
    base: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Save:
    """A resumable save. finished: whether the imitation it belongs to has its checkpoint and no live job."""

    run: int
    iteration: int
    size: int
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Policy:
    """keep_last: so many of each run (None: all stay); keep_best: also the best of each run by this benchmark; saves: delete old saves."""

    keep_last: int | None
    keep_best: str = ""
    saves: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """delete: ids; keep: id -> why it stays; saves: (run, iteration); frees: bytes."""

    delete: Sequence[int]
    keep: Mapping[int, str]
    saves: Sequence[tuple[int, int]]
    frees: int


def make_plan(
    kept: Sequence[Kept], saves: Sequence[Save], policy: Policy, *, unfinished: Iterable[int], starts: Iterable[str] = ()
) -> Plan:
    """What the policy would delete now.

    unfinished: runs that are live or could be resumed; starts: the paths of checkpoints that those runs begin with.
    """
    stay = protected(kept, unfinished=unfinished, starts=starts)
    by_run: dict[int, list[Kept]] = defaultdict(list)
    for one in kept:
        by_run[one.run].append(one)
    for one in kept:
        reason = _chosen(one, by_run[one.run], policy)
        if reason:
            stay.setdefault(one.id, reason)
    _add_bases(stay, kept)
    delete = [one.id for one in kept if one.id not in stay]
    old = [(save.run, save.iteration) for save in saves if policy.saves and save.finished]
    frees = sum(one.size for one in kept if one.id not in stay)
    frees += sum(save.size for save in saves if (save.run, save.iteration) in old)
    return Plan(delete=delete, keep=stay, saves=old, frees=frees)


def protected(kept: Sequence[Kept], *, unfinished: Iterable[int], starts: Iterable[str] = ()) -> dict[int, str]:
    """id -> why it may not be deleted, for those that nobody may delete; bases of these included."""
    going_on, begun_with = set(unfinished), set(starts)
    last = {one.run: one.iteration for one in sorted(kept, key=lambda one: one.iteration)}
    stay: dict[int, str] = {}
    for one in kept:
        if one.pinned:
            stay[one.id] = PINNED
        elif one.busy:
            stay[one.id] = BUSY
        elif one.unmeasured:
            stay[one.id] = UNMEASURED
        elif one.run in going_on and one.iteration == last[one.run]:
            stay[one.id] = LAST
        elif one.path in begun_with:
            stay[one.id] = START
    _add_bases(stay, kept)
    return stay


def why_not(one: int, kept: Sequence[Kept], *, unfinished: Iterable[int], starts: Iterable[str] = ()) -> str:
    """Why this one checkpoint may not be deleted by hand; empty where it may. Every other one stays then, and with it needs its base."""
    found = protected(kept, unfinished=unfinished, starts=starts).get(one, "")
    path = next((other.path for other in kept if other.id == one), None)
    if not found and path is not None and any(other.base == path and other.id != one for other in kept):
        return BASE
    return found


def _chosen(one: Kept, of_run: Sequence[Kept], policy: Policy) -> str:
    newer = sum(other.iteration > one.iteration for other in of_run)
    if policy.keep_last is None or newer < policy.keep_last:
        return NEWEST
    scored = [other.scores[policy.keep_best] for other in of_run if policy.keep_best in other.scores]
    return BEST if scored and one.scores.get(policy.keep_best) == max(scored) else ""


def _add_bases(stay: dict[int, str], kept: Sequence[Kept]) -> None:
    """Add the folders under adapters that stay, and the ones under those, until there is none left to add."""
    by_path = {one.path: one for one in kept}
    waiting = [one for one in kept if one.id in stay]
    while waiting:
        base = by_path.get(waiting.pop().base)
        if base is not None and base.id not in stay:
            stay[base.id] = BASE
            waiting.append(base)
