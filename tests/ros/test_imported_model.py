"""A node with a model of imported official files answers goals with prompts."""

from __future__ import annotations

from array import array
from pathlib import Path
import sys

from action_msgs.msg import GoalStatus
from mirage.action import Imagine
from models import save_small_labeller
import numpy as np
from processes import NodeProcess, seed_messages, trajectory
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.conversion.command import main
from mirage_model.conversion.config import ImportCommand
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import load_model
from mirage_model.perception import with_sensor_depth
from mirage_model.write_filter import write_frames
from mirage_ros import convert

sys.path.insert(0, str(Path(__file__).parents[1] / 'conversion'))
from folders import save_branch, save_wan  # noqa: E402
from published_rollout import published_rollout  # noqa: E402

NODE = [sys.executable, '-m', 'mirage_ros']
HEIGHT, WIDTH, NEW_FRAMES, STEPS, SEED = 64, 96, 8, 2, 4


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A model of official files, and a labeller."""
    wan = save_wan(tmp_path / 'wan', pickled=True)
    official = save_branch(tmp_path / 'official', blocks=2)
    model = tmp_path / 'model'
    command = ImportCommand(
        source='official',
        folder=official,
        wan=wan,
        out=model,
        precision='float32',
        frame_rate=8.0,
        height=HEIGHT,
        width=WIDTH,
        chunk_frames=NEW_FRAMES + 1,
        steps=STEPS,
    )
    assert main(command) == 0
    return model, save_small_labeller(tmp_path / 'labeller')


@pytest.fixture
def node(folders, tmp_path):
    model, labeller = folders
    node = NodeProcess(
        tmp_path / 'node.log',
        program=NODE,
        model__folder=f"'{model}'",
        model__labeller=f"'{labeller}'",
        compression__format='none',
    )
    yield node
    node.stop()


def seed_of_noise():
    """Return messages of an image in which the labeller finds no dynamic object."""
    image, camera_info, depth = seed_messages(height=HEIGHT, width=WIDTH)
    noise = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    image.data = array('B', (noise * 255).byte().movedim(0, -1).contiguous().numpy().tobytes())
    return image, camera_info, depth


def published_frames(folders, prompt: str, cameras: Cameras) -> np.ndarray:
    """Return the frames (n, H, W, 3) in 0..255 that the published networks make."""
    model = load_model(folders[0], labeller=folders[1])
    image, _, depth = seed_of_noise()
    pixels = np.frombuffer(image.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    frame = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
    metres = np.frombuffer(depth.data, np.float32).reshape(1, HEIGHT, WIDTH)
    memory = LatentMemory(MemoryConfig(channels=48))
    estimate = model.perception.estimate(frame, cameras[:1])
    estimate = with_sensor_depth(estimate, torch.from_numpy(metres.copy()))
    write_frames(memory, frame, estimate, codec=model.codec, observed=True)
    chunks = published_rollout(
        model,
        memory,
        frame,
        cameras,
        prompt=prompt,
        steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
    )
    frames = torch.cat(list(chunks))
    labels = model.perception.labeller.label(frames[3:8:4], cameras.times[4:9:4])
    assert (labels.moving | labels.sky).any(), 'the memory of the second chunk has no holes'
    return frames.movedim(1, -1).numpy() * 255


def test_goal_equals_the_reference_rollout(client, node, folders):
    """Frames differ from those of the published networks by 1e-4 at most, before they are
    rounded to bytes."""
    client.connect()
    for _ in range(5):  # its topics are best effort
        for topic, message in zip(('image', 'camera_info', 'depth'), seed_of_noise()):
            client.send(topic, message)
        client.spin(0.1)
    films = {}
    for prompt in ('a quiet hall', 'red doors'):
        goal = Imagine.Goal(trajectory=trajectory(2 * NEW_FRAMES), prompt=prompt, seed=SEED)
        client.chunks.clear()
        status, result = client.goal(goal).result()
        assert status == GoalStatus.STATUS_SUCCEEDED, result.message
        assert result.chunks == 2 and result.model == 'latent-spatial-memory'
        client.until(lambda: len(client.chunks) == 2)
        films[prompt] = [convert.chunk_from_message(message) for message in client.chunks]
    first, second = films['a quiet hall']
    poses = np.concatenate([np.eye(4)[None], first.world_from_camera, second.world_from_camera])
    count = len(poses)
    cameras = Cameras(
        K=torch.from_numpy(np.reshape(first.K, (1, 3, 3))).float().repeat(count, 1, 1),
        world_from_camera=torch.from_numpy(poses).float(),
        times=torch.arange(count, dtype=torch.float64) / 8,
        height=HEIGHT,
        width=WIDTH,
    )
    for prompt, chunks in films.items():
        frames = np.concatenate([chunk.frames for chunk in chunks]).astype(float)
        expected = published_frames(folders, prompt, cameras)
        assert np.abs(frames - expected).max() <= 0.5 + 255 * 1e-4
    assert 'does not segment dynamic objects' not in node.says()
    assert any((a.frames != b.frames).any() for a, b in zip(*films.values(), strict=True))
