"""The real benchmark and seed data that lie beside a checkout in development; tests on them skip where they are not there."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


def needs_shared(*folders: str) -> pytest.MarkDecorator:
    """Skip a test where one of these folders of the shared data is absent."""
    absent = [folder for folder in folders if not (DATA / folder).is_dir()]
    return pytest.mark.skipif(bool(absent), reason=f"real data is absent: {DATA}/{absent[0] if absent else ''}")
