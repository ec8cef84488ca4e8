from typing import Any

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


def say_there_was_no_preflight(apps: Any, editor: Any) -> None:
    """Runs of before go on as they were planned, without that step."""
    for run in apps.get_model("experiments", "Run").objects.all():
        run.config.setdefault("imitation", {}).setdefault("preflight", False)
        run.save(update_fields=["config"])


class Migration(migrations.Migration):
    dependencies = [
        ("experiments", "0006_indexes_beside_batches"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RunPython(say_there_was_no_preflight, migrations.RunPython.noop),
        migrations.AddField(
            model_name="checkpoint",
            name="deleted_at",
            field=models.DateTimeField(help_text="when its files were deleted", null=True),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="parent",
            field=models.ForeignKey(
                help_text="what it was tuned from",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="children",
                to="experiments.checkpoint",
            ),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="pinned",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="stored_at",
            field=models.CharField(blank=True, help_text="where a copy lies in the team's storage", max_length=500),
        ),
        migrations.AddField(
            model_name="job",
            name="use_saved",
            field=models.BooleanField(default=False, help_text="makes the last save the checkpoint instead of tuning on"),
        ),
        migrations.AddField(
            model_name="metric",
            name="gpu_percent",
            field=models.FloatField(null=True),
        ),
        migrations.AlterField(
            model_name="job",
            name="step",
            field=models.CharField(
                choices=[
                    ("preflight", "preflight"),
                    ("teacher_responses", "teacher_responses"),
                    ("tuning", "tuning"),
                    ("benchmarks", "benchmarks"),
                    ("student_responses", "student_responses"),
                    ("judgements", "judgements"),
                    ("candidates", "candidates"),
                ],
                max_length=30,
            ),
        ),
        migrations.CreateModel(
            name="Errand",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("merged", "merged weights"),
                            ("adapter", "adapter alone"),
                            ("gguf", "GGUF"),
                            ("push", "push to the Hub"),
                            ("store", "copy to the team's storage"),
                            ("restore", "bring back from the team's storage"),
                            ("verify", "check the files"),
                            ("answer", "answer in the playground"),
                        ],
                        max_length=10,
                    ),
                ),
                ("queue", models.CharField(choices=[("teacher", "Teacher"), ("gpu", "Gpu")], default="gpu", max_length=10)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("queued", "Queued"),
                            ("running", "Running"),
                            ("finished", "Finished"),
                            ("failed", "Failed"),
                            ("crashed", "Crashed"),
                            ("stopped", "Stopped"),
                        ],
                        default="queued",
                        max_length=10,
                    ),
                ),
                ("options", models.JSONField(default=dict)),
                ("result", models.JSONField(default=dict)),
                ("note", models.TextField(blank=True, help_text="how far it is, in words")),
                ("reason", models.TextField(blank=True, help_text="why it ended as it did, in words for a person")),
                ("worker", models.CharField(blank=True, max_length=200)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("sent_at", models.DateTimeField(null=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("ended_at", models.DateTimeField(null=True)),
                ("lease_expires_at", models.DateTimeField(null=True)),
                ("stop_requested_at", models.DateTimeField(null=True)),
                (
                    "checkpoint",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="errands", to="experiments.checkpoint"),
                ),
                (
                    "requested_by",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="errands", to=settings.AUTH_USER_MODEL),
                ),
            ],
            options={
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="Imitation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("preflight", models.JSONField(default=dict)),
                ("first_batch", models.JSONField(default=dict)),
                ("saved_step", models.PositiveIntegerField(help_text="the last resumable save, after this step", null=True)),
                ("steps", models.PositiveIntegerField(default=0)),
                ("saved_at", models.DateTimeField(null=True)),
                (
                    "iteration",
                    models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name="imitation", to="experiments.iteration"),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Question",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("text", models.TextField()),
                ("temperature", models.FloatField(default=0.7)),
                ("max_new_tokens", models.PositiveIntegerField(default=256)),
                ("seed", models.PositiveIntegerField(default=0)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "asked_by",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="questions", to=settings.AUTH_USER_MODEL),
                ),
                (
                    "checkpoint",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="questions", to="experiments.checkpoint"),
                ),
            ],
            options={
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="Answer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "speaker",
                    models.CharField(
                        choices=[
                            ("checkpoint", "Checkpoint"),
                            ("earlier", "earlier checkpoint"),
                            ("base", "base student"),
                            ("teacher", "Teacher"),
                        ],
                        max_length=10,
                    ),
                ),
                ("text", models.TextField(blank=True)),
                ("tokens", models.PositiveIntegerField(default=0)),
                ("seconds", models.FloatField(null=True)),
                ("finished", models.BooleanField(default=False)),
                ("failure", models.TextField(blank=True)),
                (
                    "checkpoint",
                    models.ForeignKey(
                        help_text="whose weights speak",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="answers",
                        to="experiments.checkpoint",
                    ),
                ),
                (
                    "completion",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to="experiments.completion"
                    ),
                ),
                (
                    "instruction",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to="experiments.instruction"
                    ),
                ),
                (
                    "errand",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="answers", to="experiments.errand"
                    ),
                ),
                (
                    "question",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="answers", to="experiments.question"),
                ),
            ],
            options={
                "ordering": ("id",),
            },
        ),
        migrations.AddIndex(
            model_name="errand",
            index=models.Index(condition=models.Q(("state__in", ["queued", "running"])), fields=["state"], name="errand_live"),
        ),
        migrations.AddConstraint(
            model_name="errand",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "running"), _negated=True),
                    models.Q(("lease_expires_at__isnull", False), models.Q(("worker", ""), _negated=True)),
                    _connector="OR",
                ),
                name="errand_running_has_lease",
            ),
        ),
        migrations.AddConstraint(
            model_name="answer",
            constraint=models.UniqueConstraint(fields=("question", "speaker"), name="answer_speaker_unique"),
        ),
    ]
