from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("experiments", "0004_one_line_of_tests"),
    ]

    operations = [
        migrations.AddField(
            model_name="endpoint",
            name="archived_at",
            field=models.DateTimeField(blank=True, editable=False, help_text="no longer offered to new runs; those on it go on", null=True),
        ),
        migrations.RemoveIndex(model_name="completion", name="experiments_line_id_e120bc_idx"),
        migrations.AddIndex(
            model_name="completion",
            index=models.Index(fields=["line", "created_at", "key"], name="completion_newest"),
        ),
        migrations.AddIndex(
            model_name="completion",
            index=models.Index(condition=models.Q(("estimated", True)), fields=["line"], name="completion_estimated"),
        ),
    ]
