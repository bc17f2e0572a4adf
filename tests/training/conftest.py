from __future__ import annotations

import inspect

from diffusers import WanTransformer3DModel
from models import small_backbone
import pytest

from mirage_model.model.backbone import SIDE_BRANCHES
from mirage_model.model.side_branch import SideBranchConfig
from mirage_model.training.stages import SIZES


@pytest.fixture
def small_sizes(monkeypatch):
    """'tiny' is the size of `small_backbone`."""
    config = small_backbone().wan.config
    names = inspect.signature(WanTransformer3DModel).parameters
    monkeypatch.setitem(SIZES, 'tiny', {k: v for k, v in config.items() if k in names})
    monkeypatch.setitem(SIDE_BRANCHES, 'tiny', SideBranchConfig(layers=(0, 2), head=16))
