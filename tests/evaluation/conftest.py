from __future__ import annotations

from pathlib import Path

from drives import record
import pytest


@pytest.fixture(scope='module')
def recorded(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp('replay'))
