"""What the tests of several pages ask for."""

import time
from typing import Any

import pytest

import trainer.pacing
from trainer.calls import Call, Done, Outcome
from trainer.config import EndpointConfig


@pytest.fixture
def unwell_state() -> dict[str, Any]:
    """The pace of an endpoint whose last calls all failed."""
    failed = Done(call=Call(key="a" * 64, role="referee", input_tokens=9, output_tokens=9), outcome=Outcome.FAILED, error="HTTP 503")
    pace = trainer.pacing.Pace()
    pace.settle([failed] * 10, limits=EndpointConfig(), now=time.time())
    return pace.as_dict()
