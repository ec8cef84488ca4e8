"""The embedded PostgreSQL is killed in the middle of a stage; the run goes on by itself and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lionweb import embedded
from tests import tiny
from tests.local.process import LionWeb
from tests.stack import ROOT, free_port, wait_until
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher

LAUNCH = """
import json, sys
from experiments.management.commands.sign_in_link import ensure_user
from experiments.models import Experiment
from experiments.services import pools, runs
from trainer.config import config_from_dict
owner = ensure_user("admin")
given = json.load(sys.stdin)
pool = pools.import_seed_pool(given["seeds"], name="sixty seeds", source="tests")
experiment = Experiment.objects.create(name="Kills", owner=owner)
print(runs.launch(config_from_dict(given["config"]), experiment=experiment, seed_pool=pool, owner=owner).pk)
"""

DUMP = """
import json
from experiments.models import Run
from tests import compare
print(json.dumps(compare.of_database(Run.objects.get())))
"""


def in_shell(lionweb: LionWeb, code: str, given: Any = None) -> str:
    """Run some code with the app's models in another process, on the data of this LionWeb."""
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=lionweb.environment, input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(lionweb: LionWeb, sql: str) -> Any:
    with psycopg.connect(embedded.database_url(lionweb.place.data / "postgres")) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.slow
def test_a_run_outlives_postgres(lionweb: LionWeb, tmp_path: Path) -> None:
    port = free_port()
    seeds = tiny.write_seeds(tmp_path / "seeds.json")
    config = tiny.make_config(seeds, port=port)
    undisturbed = tiny.run_in_shell(config, tmp_path, port=port)
    lionweb.start()
    with OfflineTeacher(Knobs(latency_ms=15), port=port) as teacher:
        in_shell(lionweb, LAUNCH, {"seeds": seeds.read_text(), "config": config.as_dict()})
        verdicts = "SELECT count(*) FROM experiments_verdict"
        wait_until(lambda: ask(lionweb, verdicts)[0][0] >= 5, timeout_s=120, what="the middle of discrimination")

        os.kill(lionweb.processes()["postgres"], signal.SIGKILL)

        def is_over() -> bool:
            try:
                rows = ask(lionweb, "SELECT step, state FROM experiments_job ORDER BY id DESC LIMIT 1")
            except psycopg.OperationalError:
                return False
            return rows[0] == ("tuning", "finished") and ask(lionweb, "SELECT count(*) FROM experiments_checkpoint")[0][0] == 3

        wait_until(is_over, timeout_s=240, what="the end of the run")
        paid = ask(lionweb, "SELECT count(*) FROM experiments_completion")[0][0]
        assert paid == teacher.stats()["distinct"]
        assert teacher.stats()["repeated"] == 0
    assert json.loads(in_shell(lionweb, DUMP)) == json.loads(json.dumps(undisturbed))
