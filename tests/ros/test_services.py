"""Services change a memory between two observations."""

from __future__ import annotations

from dataclasses import replace
import threading

from instant_engine import InstantEngine
from mirage.srv import MemoryFile, ResetMemory
import numpy as np
import pytest

from mirage_model.interface import Observation
from mirage_ros.memory_names import DRIVEN, MemoryRecord
from mirage_ros.node import MirageNode
from mirage_ros.services import Services


@pytest.fixture
def node(ros, tmp_path):
    engine = InstantEngine()
    node = MirageNode(lambda parameters: engine)
    memory = replace(node.parameters.memory, folder=str(tmp_path))
    node.parameters = replace(node.parameters, memory=memory)
    assert node.start()
    yield node
    node.close()
    node.destroy_node()


def seed_view() -> Observation:
    return Observation(
        image=np.full((8, 8, 3), 50, np.uint8),
        K=np.eye(3),
        world_from_camera=np.eye(4),
        time=0.0,
        depth=np.ones((8, 8), np.float32),
    )


def next_in_line(node: MirageNode, ask) -> bool:
    """Return whether the driven memory exists for the task right behind that of ``ask``."""
    holds, begin = threading.Event(), threading.Event()

    def hold(engine: InstantEngine) -> bool:
        holds.set()
        return begin.wait(10)

    held = node.worker.call(hold)
    assert holds.wait(10)  # or it would be taken for what was asked
    asking = threading.Thread(target=ask)
    asking.start()
    while not node.worker._calls:
        pass
    found = node.worker.call(lambda engine: node.memories.find(DRIVEN) is not None)
    begin.set()
    asking.join()
    assert held.result()
    return found.result()


def test_load_and_reset_take_effect_between_two_observations(node):
    (services,) = (part for part in node._parts if isinstance(part, Services))
    view = seed_view()
    node.worker.call(lambda engine: engine.seed(view, memory=DRIVEN)).result()
    node.memories.add(DRIVEN, MemoryRecord(camera_frame='camera'))
    file = MemoryFile.Request(file='drive')
    services._save(file, MemoryFile.Response())
    forget = lambda: services._reset(ResetMemory.Request(), ResetMemory.Response())  # noqa: E731
    for _ in range(5):
        assert not next_in_line(node, forget)
        assert next_in_line(node, lambda: services._load(file, MemoryFile.Response()))
