from django.conf import settings
from django.db import models
from django.db.models import Q

from experiments.models.completion import Completion
from experiments.models.instruction import Instruction
from experiments.models.run import Iteration
from trainer.records import Label, Order

TOGETHER = [Order.TEACHER_FIRST.value, Order.STUDENT_FIRST.value]
HARD, EASY = Label.HARD.value, Label.EASY.value


class Role(models.TextChoices):
    TEACHER = "teacher"
    STUDENT = "student"


class Response(models.Model):
    """What a role's model said to an instruction: the teacher once in a run, the student in every iteration it is judged in."""

    instruction = models.ForeignKey(Instruction, on_delete=models.CASCADE, related_name="responses")
    iteration = models.ForeignKey(
        Iteration,
        on_delete=models.CASCADE,
        related_name="responses",
        help_text="teacher: the one it was first needed in; student: the one it is judged in",
    )
    role = models.CharField(max_length=10, choices=Role.choices)
    text = models.TextField(blank=True)
    failure = models.TextField(blank=True, help_text="why there is no usable text")
    tokens = models.PositiveIntegerField(default=0)
    cut = models.BooleanField(default=False, help_text="the student had as many tokens as it may, and would have gone on")
    completion = models.ForeignKey(Completion, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["instruction"], condition=Q(role=Role.TEACHER), name="response_one_of_teacher"),
            models.UniqueConstraint(fields=["instruction", "iteration"], condition=Q(role=Role.STUDENT), name="response_one_of_student"),
        ]
        indexes = [models.Index(fields=["iteration", "role"])]

    def __str__(self) -> str:
        return self.text or self.failure


class Judgement(models.Model):
    """One referee call: the two responses in one order, or one of them alone; its scores and the evidence, or a failure."""

    instruction = models.ForeignKey(Instruction, on_delete=models.CASCADE, related_name="judgements")
    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="judgements")
    order = models.CharField(max_length=20, choices=[(o.value, o.value) for o in Order])
    teacher_score = models.FloatField(null=True)
    student_score = models.FloatField(null=True)
    evidence = models.TextField(blank=True)
    failure = models.TextField(blank=True)
    completion = models.ForeignKey(Completion, null=True, on_delete=models.SET_NULL, related_name="+")
    referee = models.CharField(max_length=100, blank=True, help_text="the endpoint that was asked")
    sample = models.PositiveSmallIntegerField(default=0, help_text="which of several judgements of one kind")
    prompt = models.CharField(max_length=40, blank=True, help_text="which of our prompts, in which version")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["instruction", "iteration", "order", "referee", "sample"], name="judgement_ask_unique"),
            models.CheckConstraint(
                condition=Q(teacher_score__isnull=True, student_score__isnull=True) & ~Q(failure="")
                | Q(order__in=TOGETHER, teacher_score__range=(1, 10), student_score__range=(1, 10), failure="")
                | Q(order=Order.TEACHER_ALONE.value, teacher_score__range=(1, 10), student_score__isnull=True, failure="")
                | Q(order=Order.STUDENT_ALONE.value, student_score__range=(1, 10), teacher_score__isnull=True, failure=""),
                name="judgement_scores_or_failure",
            ),
        ]
        indexes = [models.Index(fields=["iteration", "order"])]

    def __str__(self) -> str:
        return f"{self.order}: {self.teacher_score} / {self.student_score}"


class Verdict(models.Model):
    """The judgements of an instruction in an iteration together: hard, easy or quarantined, never a number made up."""

    instruction = models.ForeignKey(Instruction, on_delete=models.CASCADE, related_name="verdicts")
    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="verdicts")
    label = models.CharField(max_length=12, choices=[(label.value, label.value) for label in Label])
    teacher_score = models.FloatField(null=True)
    student_score = models.FloatField(null=True)
    discrepancy = models.FloatField(null=True, help_text="mean teacher score minus mean student score")
    inconsistent = models.BooleanField(default=False, help_text="the two orders disagree on the side of tau")
    reason = models.TextField(blank=True)
    tries = models.PositiveSmallIntegerField(default=0, help_text="how often the referee was put the case")
    by_hand = models.BooleanField(default=False, help_text="a person gave the scores")
    left_out = models.BooleanField(default=False, help_text="a person wants it to stay quarantined: it is not judged again")
    ruled_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", help_text="who scored or left it out"
    )
    overruled_to = models.CharField(
        max_length=12,
        blank=True,
        choices=[(HARD, HARD), (EASY, EASY)],
        default="",
        db_default="",
        help_text="what most reviews said where that was the other label, before new instructions were made: these go by it",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["instruction", "iteration"], name="verdict_unique"),
            models.CheckConstraint(
                condition=Q(label=Label.QUARANTINED.value, discrepancy__isnull=True, teacher_score__isnull=True, student_score__isnull=True)
                & ~Q(reason="")
                | ~Q(label=Label.QUARANTINED.value)
                & Q(discrepancy__isnull=False, teacher_score__range=(1, 10), student_score__range=(1, 10)),
                name="verdict_number_unless_quarantined",
            ),
            models.CheckConstraint(condition=Q(left_out=False) | Q(label=Label.QUARANTINED.value), name="verdict_left_out_is_quarantined"),
            models.CheckConstraint(condition=Q(by_hand=False) | ~Q(label=Label.QUARANTINED.value), name="verdict_by_hand_has_scores"),
            models.CheckConstraint(
                condition=Q(overruled_to="") | Q(label=HARD, overruled_to=EASY) | Q(label=EASY, overruled_to=HARD),
                name="verdict_overruled_to_the_other",
            ),
        ]
        indexes = [models.Index(fields=["iteration", "label"]), models.Index(fields=["iteration", "-discrepancy"])]

    def __str__(self) -> str:
        return self.label
