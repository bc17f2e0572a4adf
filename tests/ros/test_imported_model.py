"""A node with a model of imported official files answers a goal with a prompt."""

from __future__ import annotations

from pathlib import Path
import sys

from action_msgs.msg import GoalStatus
from mirage.action import Imagine
from models import save_small_labeller
import numpy as np
from processes import NodeProcess, trajectory
import pytest

from mirage_model.conversion.command import main
from mirage_model.conversion.config import ImportCommand
from mirage_ros import convert

sys.path.insert(0, str(Path(__file__).parents[1] / 'conversion'))
from folders import save_branch, save_wan  # noqa: E402

NODE = [sys.executable, '-m', 'mirage_ros']
NEW_FRAMES = 8


@pytest.fixture
def node(tmp_path):
    wan = save_wan(tmp_path / 'wan', pickled=True)
    official = save_branch(tmp_path / 'official', blocks=2)
    model = tmp_path / 'model'
    sizes = {'height': 64, 'width': 96, 'chunk_frames': NEW_FRAMES + 1, 'steps': 2}
    command = ImportCommand(
        source='official',
        folder=official,
        wan=wan,
        out=model,
        precision='float32',
        frame_rate=8.0,
        **sizes,
    )
    assert main(command) == 0
    labeller = save_small_labeller(tmp_path / 'labeller')
    node = NodeProcess(
        tmp_path / 'node.log',
        program=NODE,
        model__folder=f"'{model}'",
        model__labeller=f"'{labeller}'",
    )
    yield node
    node.stop()


def test_goals_with_prompts_run_on_an_imported_model(client, node):
    client.connect()
    client.send_seed()
    films = []
    for prompt in ('a quiet hall', 'a quiet hall', 'red doors'):
        goal = Imagine.Goal(trajectory=trajectory(2 * NEW_FRAMES), prompt=prompt, seed=4)
        client.chunks.clear()
        status, result = client.goal(goal).result()
        assert status == GoalStatus.STATUS_SUCCEEDED, result.message
        assert result.chunks == 2 and result.model == 'latent-spatial-memory'
        client.until(lambda: len(client.chunks) == 2)
        chunks = [convert.chunk_from_message(message) for message in client.chunks]
        films.append(np.concatenate([chunk.frames for chunk in chunks]))
    assert films[0].shape == (2 * NEW_FRAMES, 64, 96, 3)
    np.testing.assert_array_equal(films[0], films[1])
    assert (films[0] != films[2]).any()
