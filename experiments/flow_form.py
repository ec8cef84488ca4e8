"""The filters of the instruction list with what the pool flow and the trajectories ask of it."""

from __future__ import annotations

from django import forms

from experiments.forms import FilterForm
from experiments.querysets_diversity import PARENTS
from experiments.querysets_flow import STATES


class InstructionFilterForm(FilterForm):
    """`state`: how far an instruction of the cache pool came in the iteration that is shown."""

    state = forms.ChoiceField(label="Came so far", required=False, choices=[("", "Any"), *STATES.items(), *PARENTS.items()])
    language = forms.CharField(required=False, max_length=8)
    verb = forms.CharField(label="Root verb", required=False, max_length=60)
    noun = forms.CharField(label="Its object", required=False, max_length=60)
