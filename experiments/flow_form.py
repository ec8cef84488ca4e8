"""The filters of the instruction list with what the pool flow, the trajectories and the Referee page ask of it."""

from __future__ import annotations

from django import forms
from django.http import QueryDict

from experiments.forms import FilterForm
from experiments.querysets_diversity import NONE, PARENTS
from experiments.querysets_flow import STATES
from experiments.querysets_referee import LENGTH_STATES
from experiments.querysets_reviews import REVIEW_STATES

RANGE_WORDS = {"d": "d", "gap": "|d|", "teacher": "teacher's score", "student": "student's score"}
RANGE_FIELDS = tuple(f"{name}_{end}" for name in RANGE_WORDS for end in ("from", "to"))
TRAIT_WORDS = {"language": "language", "verb": "root verb", "noun": "object"}
MOST = 11.0
"""No score and no |d| is so large, nor is the end of a bin of them."""


def _bound(label: str = "", *, shown: bool = False) -> forms.FloatField:
    widget = forms.NumberInput(attrs={"step": "any"}) if shown else forms.HiddenInput()
    return forms.FloatField(label=label, required=False, min_value=-MOST, max_value=MOST, widget=widget)


def _states() -> list[tuple[str, object]]:
    """The states in groups."""
    of_flow = [(state, words) for state, words in STATES.items() if state not in REVIEW_STATES and state not in LENGTH_STATES]
    groups = {
        "Pool flow": of_flow,
        "Reviews": list(REVIEW_STATES.items()),
        "Length": list(LENGTH_STATES.items()),
        "Parents": list(PARENTS.items()),
    }
    return [("", "Any"), *groups.items()]


class InstructionFilterForm(FilterForm):
    """`state`: how far an instruction of the cache pool came in the iteration that is shown, and what was found of its verdict there.

    `d_from` is included, `d_to` is not, and so for the other ranges; `reason`: the MD5 of a reason of quarantine.
    """

    state = forms.ChoiceField(label="In that iteration", required=False, choices=_states)
    d_from, d_to = _bound("d from", shown=True), _bound("d below", shown=True)
    gap_from, gap_to = _bound("|d| from"), _bound("|d| below")
    teacher_from, teacher_to = _bound("Teacher's score from"), _bound("Teacher's score below")
    student_from, student_to = _bound("Student's score from"), _bound("Student's score below")
    language = forms.CharField(required=False, max_length=8, widget=forms.HiddenInput)
    verb = forms.CharField(label="Root verb", required=False, max_length=60, widget=forms.HiddenInput)
    noun = forms.CharField(label="Its object", required=False, max_length=60, widget=forms.HiddenInput)
    reason = forms.RegexField(r"^[0-9a-f]{32}$", label="Reason of quarantine", required=False, widget=forms.HiddenInput)

    @property
    def hidden_filters(self) -> list[tuple[str, str]]:
        """The filters that are set and have no box of their own: in words, with the address of the list without them."""
        chosen, found = self.chosen, []
        for name, words in RANGE_WORDS.items():
            ends = (f"{name}_from", f"{name}_to")
            if name != "d" and any(end in chosen for end in ends):
                low, high = (chosen.get(end) for end in ends)
                said = [words, *([f"from {low:g}"] if low is not None else []), *([f"below {high:g}"] if high is not None else [])]
                found.append((" ".join(said), self._without(*ends)))
        for name, words in TRAIT_WORDS.items():
            if name in chosen:
                found.append((f"{words} {'not told' if chosen[name] == NONE else chosen[name]}", self._without(name)))
        if "reason" in chosen:
            found.append(("one reason of quarantine", self._without("reason")))
        if "made_to" in chosen:
            found.append((f"made up to iteration {chosen['made_to']}", self._without("made_to")))
        return found

    def _without(self, *names: str) -> str:
        query = QueryDict(mutable=True)
        query.update({name: value for name, value in self.data.items() if name not in (*names, "page")})
        return f"?{query.urlencode()}"
