import shutil
from collections.abc import Iterator

import pytest

from lionweb import local
from tests.local.process import LionWeb
from tests.stack import make_data_folder


@pytest.fixture
def lionweb() -> Iterator[LionWeb]:
    it = LionWeb(make_data_folder())
    try:
        yield it
    finally:
        if it.process is not None and it.process.poll() is None:
            it.process.kill()
            it.process.wait()
        local.end_leftovers(it.place)
        shutil.rmtree(it.place.data)
