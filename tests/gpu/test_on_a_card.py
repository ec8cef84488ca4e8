"""What only a CUDA card can show: bf16, QLoRA, packed batches, and two cards. `pytest -m gpu` runs them where there is one.

The student is of SmolLM2-135M's shape with random weights: as fast and as large as the real one, and no download.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.bench.card import make_student
from tests.trainer.tuning_cases import imitate, make_config, make_examples
from trainer.config import RunConfig
from trainer.records import Metric, Preflight, Response, TuningNews
from trainer.student import LocalStudent

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]


@pytest.fixture(scope="module")
def smollm2_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student of 135 M parameters over 49,152 tokens."""
    return make_student(tmp_path_factory.mktemp("smollm2") / "student")


def of(folder: Path, *, method: str = "full", precision: str = "bf16", **settings: Any) -> RunConfig:
    tuning = {"batch_size": 16, "device_batch_size": 8, "learning_rate": 5e-4 if method == "full" else 5e-3, "log_steps": 1}
    config = make_config(student={"model": str(folder), "method": method, "precision": precision}, **{**tuning, **settings})
    return replace(config, respond=replace(config.respond, max_new_tokens=64, batch_size=64))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("batches", ["grouped", "packed"])
def test_it_learns_in_bf16(smollm2_shape: Path, tmp_path: Path, method: str, batches: str) -> None:
    news: list[TuningNews] = []
    _, metrics = imitate(of(smollm2_shape, method=method, batches=batches), tmp_path, examples=make_examples(64), news=news)

    assert metrics[-1].loss < 0.8 * metrics[0].loss
    found = next(told for told in news if isinstance(told, Preflight))
    assert metrics[-1].memory_gib
    # The estimate is of the right size: neither half of what was needed nor three times it.
    assert 0.5 < found.memory_needed / 2**30 / metrics[-1].memory_gib < 3


def test_packed_is_grouped_in_bf16_too(smollm2_shape: Path, tmp_path: Path) -> None:
    losses = {}
    for batches in ("grouped", "packed"):
        _, metrics = imitate(of(smollm2_shape, batches=batches), tmp_path / batches, examples=make_examples(64))
        losses[batches] = [metric.loss for metric in metrics]

    assert losses["packed"] == pytest.approx(losses["grouped"], rel=0.05)


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed (pip install bitsandbytes)")
def test_an_adapter_is_tuned_on_a_base_in_four_bits_and_further(smollm2_shape: Path, tmp_path: Path) -> None:
    config = of(smollm2_shape, method="qlora")
    first, metrics = imitate(config, tmp_path, examples=make_examples(64))
    _, further = imitate(config, tmp_path, examples=make_examples(64), iteration=1, start=first)

    assert metrics[-1].loss < 0.9 * metrics[0].loss
    assert further[0].loss < metrics[0].loss


def test_the_gpu_s_use_is_told_where_somebody_can_tell(smollm2_shape: Path, tmp_path: Path) -> None:
    _, metrics = imitate(of(smollm2_shape), tmp_path, examples=make_examples(64))

    told = [metric.gpu_percent for metric in metrics if metric.gpu_percent is not None]
    assert all(0 <= percent <= 100 for percent in told)
    assert bool(told) == bool(find_spec("pynvml"))


def test_it_answers_the_same_twice_on_a_card(smollm2_shape: Path, tmp_path: Path) -> None:
    texts: list[dict[str, str]] = []
    for _ in range(2):
        kept: list[Response] = []
        student = LocalStudent(of(smollm2_shape), tmp_path)
        student.respond([example.instruction for example in make_examples(64)], done=frozenset(), keep=kept.extend)
        texts.append({response.instruction: response.text for response in kept})

    assert len(texts[0]) == 64
    assert texts[0] == texts[1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two cards here")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_cards_learn_what_one_does(smollm2_shape: Path, tmp_path: Path, sharding: str) -> None:
    from trainer.child_student import ChildStudent

    losses = {}
    for processes in (1, 2):
        metrics: list[Metric] = []
        config = of(smollm2_shape, precision="fp32", processes=processes, sharding=sharding if processes > 1 else "none")
        student = ChildStudent(config, iteration=0, start=None, folder=tmp_path / str(processes))
        student.imitate(make_examples(64), iteration=0, tell=lambda n, kept=metrics: kept.append(n) if isinstance(n, Metric) else None)
        losses[processes] = [metric.loss for metric in metrics]

    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
