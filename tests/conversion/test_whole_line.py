"""Official files are imported and answer a request with a prompt and a labeller."""

from __future__ import annotations

from dataclasses import replace

from folders import save_branch, save_wan
from models import save_small_labeller
from published_rollout import PublishedWan, published_rollout
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.conversion.command import main
from mirage_model.conversion.config import ImportCommand
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import load_model
from mirage_model.model.rollout import RolloutInput, rollouts
from mirage_model.model.text import TextCondition
from mirage_model.write_filter import write_frames

HEIGHT, WIDTH, STEPS, PROMPT = 64, 96, 3, 'a quiet hall with red doors'


def cameras_along(count: int) -> Cameras:
    K = torch.tensor([[60.0, 0.0, 47.5], [0.0, 60.0, 31.5], [0.0, 0.0, 1.0]])
    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, 0, 3] = 0.03 * torch.arange(count)
    return Cameras(
        K=K.repeat(count, 1, 1),
        world_from_camera=pose,
        times=torch.arange(count, dtype=torch.float64) / 16,
        height=HEIGHT,
        width=WIDTH,
    )


@pytest.mark.slow
@torch.no_grad()
def test_imported_model_equals_the_reference_rollout(tmp_path):
    """Two chunks of a request with a prompt and a labeller agree within 1e-4."""
    wan = save_wan(tmp_path / 'wan', pickled=True)
    official = save_branch(tmp_path / 'official', blocks=2)
    out = tmp_path / 'model'
    sizes = {'height': HEIGHT, 'width': WIDTH, 'chunk_frames': 9, 'steps': STEPS}
    command = ImportCommand(
        source='official', folder=official, wan=wan, out=out, precision='float32', **sizes
    )
    assert main(command) == 0
    labeller = save_small_labeller(tmp_path / 'labeller')
    model = load_model(out, labeller=labeller)

    cameras = cameras_along(17)
    frame = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    depth = torch.full((1, HEIGHT, WIDTH), 2.0)
    text = TextCondition(text=model.prompts.embed(PROMPT))
    torch.testing.assert_close(text.text, PublishedWan().text(PROMPT), atol=1e-5, rtol=1e-5)

    def seeded() -> LatentMemory:
        memory = LatentMemory(MemoryConfig(channels=48))
        estimate = model.perception.estimate(frame, cameras[:1])
        estimate = replace(
            estimate,
            depth=depth,
            confidence=torch.ones_like(depth),
            sky=torch.zeros_like(estimate.sky),
            moving=torch.zeros_like(estimate.moving),
        )
        write_frames(memory, frame, estimate, codec=model.codec, observed=True)
        return memory

    path = RolloutInput(
        memory=seeded(),
        frame=frame,
        camera=cameras[:1],
        cameras=cameras[1:],
        generator=torch.Generator().manual_seed(9),
    )
    chunks = [chunk.frames for _, chunk in rollouts(model, [path], steps=STEPS, text=text)]
    expected = published_rollout(
        model,
        seeded(),
        frame,
        cameras,
        prompt=PROMPT,
        steps=STEPS,
        generator=torch.Generator().manual_seed(9),
    )
    for frames, wanted in zip(chunks, expected, strict=True):
        torch.testing.assert_close(frames, wanted, atol=1e-4, rtol=0.0)
