"""A node with a small random model is driven from another process over DDS."""

from __future__ import annotations

import subprocess
import sys
import time

from action_msgs.msg import GoalStatus
from mirage.action import Imagine
from models import CHUNK_FRAMES, HEIGHT, WIDTH, save_small_model
import numpy as np
from processes import NodeProcess, trajectory
import pytest

from mirage_ros import convert

NODE = [sys.executable, '-m', 'mirage_ros']
NEW_FRAMES = CHUNK_FRAMES - 1


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    folder = save_small_model(tmp_path_factory.mktemp('model'))
    log = tmp_path_factory.mktemp('log') / 'node.log'
    node = NodeProcess(log, program=NODE, model__folder=f"'{folder}'", request__memory_frames=True)
    yield node
    node.stop()


def test_trajectory_in_chunks_out(client, node):
    """The seed's camera sees the whole memory; later cameras see less of it, and imagined
    points."""
    client.connect()
    client.send_seed(value=120)
    for request_id in ('first', 'again'):
        client.send('trajectory', trajectory(2 * NEW_FRAMES + 3, request_id=request_id))
        client.until(
            lambda: len(client.chunks) in (3, 6) and client.chunks[-1].request_id == request_id
        )
    chunks = [convert.chunk_from_message(message) for message in client.chunks]
    assert [len(chunk.frames) for chunk in chunks[:3]] == [NEW_FRAMES, NEW_FRAMES, 3]
    assert chunks[0].frames.shape[1:] == (HEIGHT, WIDTH, 3)
    assert chunks[0].model == 'small-random' and len(client.chunks[0].model_sha256) == 64
    assert chunks[0].depth_source == 'sensor'
    assert chunks[0].visible[0] > 0.9 and chunks[0].observed[0] > 0.9
    assert chunks[2].observed[-1] < chunks[0].observed[0]
    for chunk in chunks:
        shares = (
            (chunk.visibility > 0).mean(axis=(1, 2)),
            (chunk.visibility == 255).mean(axis=(1, 2)),
        )
        np.testing.assert_allclose(shares, (chunk.visible, chunk.observed), atol=1e-6)
        assert chunk.memory_frames.shape == chunk.frames.shape
    for one, two in zip(chunks[:3], chunks[3:]):
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.visibility, two.visibility)


def test_goal_is_cancelled_within_a_step(client, node):
    client.connect()
    client.send_seed()
    long = client.goal(Imagine.Goal(trajectory=trajectory(NEW_FRAMES), steps=1000))
    time.sleep(0.5)
    asked = time.monotonic()
    long.cancel()
    status, result = long.result()
    assert status == GoalStatus.STATUS_CANCELED and result.frames == 0
    assert time.monotonic() - asked < 5.0

    status, result = client.goal(
        Imagine.Goal(trajectory=trajectory(NEW_FRAMES), seed=3, steps=2)
    ).result()
    assert status == GoalStatus.STATUS_SUCCEEDED, result.message
    assert result.frames == NEW_FRAMES and 0 < result.observed_mean <= result.visible_mean <= 1


def test_folder_without_a_model_ends_the_node(tmp_path):
    run = subprocess.run(
        [*NODE, '--ros-args', '-p', f"model.folder:='{tmp_path}'"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 1
    assert f'{tmp_path}/model.json: the file is missing' in run.stdout + run.stderr
    assert 'Traceback' not in run.stderr
