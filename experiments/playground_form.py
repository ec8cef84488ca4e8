"""The form of a question in the playground."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from django import forms

from experiments.models import Checkpoint, Question, Speaker
from experiments.typed_numbers import NotANumberError, read_number, read_whole_number

LONGEST_TEXT = 20_000
LONGEST_ANSWER = 2048
HIGHEST_SEED = 2**31 - 1


class RangeField(forms.CharField):
    """A number as it is typed, within a range; its initial value where it is left empty."""

    def __init__(self, *, low: int, high: int, whole: bool, wanted: str, **options: Any) -> None:
        self._low, self._high, self._whole, self._wanted = low, high, whole, wanted
        self.range = f"{low:,} to {high:,}."
        attrs = {"inputmode": "numeric" if whole else "decimal", "autocomplete": "off"}
        super().__init__(required=False, max_length=40, widget=forms.TextInput(attrs=attrs), **options)

    def clean(self, value: Any) -> int | float:
        read = read_whole_number if self._whole else read_number
        try:
            number: Decimal | int | None = read(super().clean(value), wanted=self._wanted)
        except NotANumberError as error:
            raise forms.ValidationError(str(error)) from None
        if number is None:
            number = Decimal(str(self.initial))
        if not self._low <= number <= self._high:
            raise forms.ValidationError(f"Must be from {self._low:,} to {self._high:,}.")
        return int(number) if self._whole else float(number)


class QuestionForm(forms.Form):
    text = forms.CharField(
        label="Question",
        widget=forms.Textarea(attrs={"rows": 5}),
        error_messages={"required": "Write what to ask.", "null_characters_not_allowed": "It holds a NUL character. Take it out."},
    )
    temperature = RangeField(
        label="Temperature",
        low=0,
        high=2,
        whole=False,
        initial=0.7,
        wanted="a number, for instance 0.7",
        help_text="At 0 each word is the likeliest.",
    )
    max_new_tokens = RangeField(
        label="Longest answer", low=1, high=LONGEST_ANSWER, whole=True, initial=256, wanted="a whole number of tokens", help_text="Tokens."
    )
    seed = RangeField(
        label="Seed", low=0, high=HIGHEST_SEED, whole=True, initial=0, wanted="a whole number", help_text="The same draws the same text."
    )
    earlier = forms.ChoiceField(
        label="Earlier checkpoint",
        required=False,
        error_messages={"invalid_choice": "That checkpoint is not to be had, or was deleted meanwhile. Choose one from the list."},
    )
    base = forms.BooleanField(label="Base student", required=False, help_text="As it was before any imitation.")
    teacher = forms.BooleanField(label="Teacher", required=False)

    def __init__(self, data: Any = None, *, checkpoint: Checkpoint, earlier: Sequence[Checkpoint], **options: Any) -> None:
        super().__init__(data, **options)
        self._checkpoint = checkpoint
        self._earlier = {str(row.pk): row for row in earlier}
        choice: Any = self.fields["earlier"]
        choice.choices = [
            ("", "none"),
            *((pk, f"iteration {row.iteration.number}, step {row.step:,}") for pk, row in self._earlier.items()),
        ]
        if not earlier:
            del self.fields["earlier"]
        self.fields["teacher"].help_text = "Paid by the budget of the run, unless it answered this very text before."

    @property
    def numbers(self) -> list[Any]:
        return [self[name] for name in ("temperature", "max_new_tokens", "seed")]

    @property
    def others(self) -> list[Any]:
        return [self[name] for name in ("earlier", "base", "teacher") if name in self.fields]

    def clean_text(self) -> str:
        text: str = self.cleaned_data["text"].replace("\r\n", "\n")  # as browsers send a line end
        if len(text) > LONGEST_TEXT:
            raise forms.ValidationError(
                f"The text is {len(text):,} characters long, and the most is {LONGEST_TEXT:,}. Shorten it by {len(text) - LONGEST_TEXT:,}."
            )
        return text

    def clean(self) -> dict[str, Any]:
        if self._checkpoint.deleted_at is not None:
            raise forms.ValidationError("The files of this checkpoint were deleted, so it cannot answer. Ask one that is still there.")
        return super().clean() or self.cleaned_data

    @property
    def options(self) -> dict[str, Any]:
        """What a valid form asks, as `services.playground.ask` takes it."""
        return {**self.cleaned_data, "earlier": self._earlier.get(self.cleaned_data.get("earlier", ""))}


def initial_of(question: Question) -> dict[str, Any]:
    """What a question was asked with, to be asked again."""
    answers = {row.speaker: row for row in question.answers.all()}
    earlier = answers.get(Speaker.EARLIER)
    return {
        "text": question.text,
        "temperature": question.temperature,
        "max_new_tokens": question.max_new_tokens,
        "seed": question.seed,
        "earlier": str(earlier.checkpoint_id or "") if earlier else "",
        "base": Speaker.BASE in answers,
        "teacher": Speaker.TEACHER in answers,
    }
