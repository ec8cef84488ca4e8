from django.db import migrations, models


class Migration(migrations.Migration):
    """Jobs know whether a setting failed them. What failed before counts as failed by something else: it can be resumed as ever."""

    dependencies = [
        ("experiments", "0007_the_student"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="config_at_fault",
            field=models.BooleanField(
                default=False, help_text="failed by a setting of its run's frozen config: to try again changes nothing"
            ),
        ),
    ]
