from __future__ import annotations

from pathlib import Path

from drives import wall_bag
from models import save_small_model
import pytest


@pytest.fixture(scope='module')
def recorded(tmp_path_factory) -> Path:
    """A folder with a bag and a model."""
    folder = tmp_path_factory.mktemp('replay')
    wall_bag(folder / 'drive')
    save_small_model(folder / 'model')
    return folder
