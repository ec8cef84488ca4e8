import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("experiments", "0003_calls"),
    ]

    operations = [
        migrations.RunSQL(
            # Two first tests of an endpoint at once could make two lines of its tests: they become one.
            """
            UPDATE experiments_ledgerline line SET
                calls = doubles.calls, prompt_tokens = doubles.prompt_tokens, cached_tokens = doubles.cached_tokens,
                completion_tokens = doubles.completion_tokens, nanodollars = doubles.nanodollars, unanswered = doubles.unanswered,
                unanswered_nanodollars = doubles.unanswered_nanodollars, limited = doubles.limited, failed = doubles.failed
            FROM (
                SELECT min(id) AS id, sum(calls) AS calls, sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,
                    sum(completion_tokens) AS completion_tokens, sum(nanodollars) AS nanodollars, sum(unanswered) AS unanswered,
                    sum(unanswered_nanodollars) AS unanswered_nanodollars, sum(limited) AS limited, sum(failed) AS failed
                FROM experiments_ledgerline WHERE run_id IS NULL AND role = 'test' GROUP BY endpoint
            ) doubles
            WHERE line.id = doubles.id;
            DELETE FROM experiments_ledgerline line USING experiments_ledgerline earlier
            WHERE line.run_id IS NULL AND line.role = 'test' AND earlier.run_id IS NULL AND earlier.role = 'test'
                AND earlier.endpoint = line.endpoint AND earlier.id < line.id;
            SET CONSTRAINTS ALL IMMEDIATE;
            """,
            migrations.RunSQL.noop,
        ),
        migrations.AddConstraint(
            model_name="ledgerline",
            constraint=models.UniqueConstraint(
                condition=models.Q(("role", "test"), ("run__isnull", True)), fields=("endpoint",), name="ledger_line_of_tests_unique"
            ),
        ),
        migrations.AlterField(
            model_name="budget",
            name="set_at",
            field=models.DateTimeField(
                db_default=django.db.models.functions.datetime.Now(), help_text="by the clock of the database, as the times of jobs are"
            ),
        ),
    ]
