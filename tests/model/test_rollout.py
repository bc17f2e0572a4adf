from __future__ import annotations

from dataclasses import replace

from models import CHUNK_FRAMES, HEIGHT, WIDTH, save_small_model
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.interface import Cancelled
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import Model, load_model
from mirage_model.model.rollout import rollout


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Model:
    return load_model(save_small_model(tmp_path_factory.mktemp('model')))


def forward(frames: int, step: float = 0.05) -> Cameras:
    """Return cameras moving forward; the first is the start of the path."""
    world_from_camera = torch.eye(4).repeat(frames, 1, 1)
    world_from_camera[:, 2, 3] = step * torch.arange(frames)
    K = torch.tensor([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]]).expand(frames, 3, 3)
    times = torch.arange(frames, dtype=torch.float64) / 8
    return Cameras(
        K=K, world_from_camera=world_from_camera, times=times, height=HEIGHT, width=WIDTH
    )


def memory_of(model: Model, *, seeded: bool = True) -> LatentMemory:
    memory = LatentMemory(MemoryConfig(channels=model.codec.channels))
    if seeded:
        grid = replace(forward(1), height=4, width=6)
        grid = replace(grid, K=grid.K * torch.tensor([[0.125], [0.125], [1.0]]))
        memory.write(
            torch.randn(1, model.codec.channels, 4, 6, generator=torch.Generator().manual_seed(2)),
            torch.full((1, 4, 6), 3.0),
            grid,
            valid=torch.ones(1, 4, 6, dtype=torch.bool),
            observed=True,
        )
    return memory


def imagine(model: Model, *, frames: int = 16, seed: int = 0, memory=None, **changes):
    cameras = forward(frames + 1)
    frame = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    memory = memory_of(model) if memory is None else memory
    arguments = {'steps': 2, 'generator': torch.Generator().manual_seed(seed), **changes}
    return rollout(model, memory, frame, cameras[:1], cameras[1:], **arguments)


def test_chunks_are_in_order_without_context_frames(model):
    chunks = list(imagine(model))
    assert len(chunks) == 2
    for index, chunk in enumerate(chunks):
        assert chunk.frames.shape == (CHUNK_FRAMES - 1, 3, HEIGHT, WIDTH)
        start = 1 + index * (CHUNK_FRAMES - 1)
        assert torch.equal(
            chunk.cameras.times, forward(17).times[start : start + CHUNK_FRAMES - 1]
        )
        assert chunk.readout.visible.shape == (CHUNK_FRAMES - 1, 4, 6)


def test_a_seed_gives_the_same_frames_twice(model):
    first, second = list(imagine(model, seed=4)), list(imagine(model, seed=4))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(first, second, strict=True))
    assert not torch.equal(next(imagine(model, seed=5)).frames, first[0].frames)


def test_what_the_memory_holds_changes_what_is_imagined(model):
    seeded = next(imagine(model)).frames
    empty = next(imagine(model, memory=memory_of(model, seeded=False)))
    assert not empty.readout.visible.any()
    assert not torch.equal(seeded, empty.frames)


def test_generated_points_leave_observed_points_unchanged(model):
    """The camera turns about, so that the second chunk sees only imagined points."""
    memory = memory_of(model)
    before = memory.readout(replace(_grid_of(forward(1))))
    list(imagine(model, memory=memory))
    after = memory.readout(replace(_grid_of(forward(1))))
    assert torch.equal(
        after.latents[:, :, before.observed[0]], before.latents[:, :, before.observed[0]]
    )
    assert torch.equal(after.observed, before.observed)


def test_denoised_latents_are_written_unchanged(model):
    """The written latents, decoded after the frame that the chunk began with, are the chunk's
    frames."""
    written = []

    class Listening(LatentMemory):
        def write(self, latents, *arguments, **keywords):
            written.append(latents)
            return super().write(latents, *arguments, **keywords)

    memory = Listening(MemoryConfig(channels=model.codec.channels))
    before = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    for chunk, latents in zip(list(imagine(model, memory=memory)), written, strict=True):
        clip = torch.cat([model.codec.encode_images(before), latents])
        shown = model.codec.decode(clip.movedim(0, 1)[None])[0, 1:].clamp(0, 1)
        torch.testing.assert_close(shown, chunk.frames)
        before = chunk.frames[-1:]


def _grid_of(cameras: Cameras) -> Cameras:
    return replace(
        cameras, K=cameras.K * torch.tensor([[0.125], [0.125], [1.0]]), height=4, width=6
    )


def test_rollout_is_lazy(model):
    asked = []
    chunks = imagine(model, frames=24, cancelled=lambda: asked.append(None))
    next(chunks)
    assert len(asked) == 2  # one for each denoising step of the first chunk


def test_bfloat16_weights_generate_a_chunk(model, tmp_path):
    half = load_model(save_small_model(tmp_path / 'model'), dtype=torch.bfloat16)
    frames = next(imagine(half)).frames
    assert frames.dtype == torch.float32 and frames.isfinite().all()
    exact = next(imagine(model)).frames
    assert (frames - exact).abs().mean() < 0.02


def test_write_last_false_writes_nothing(model):
    memory = memory_of(model)
    before = len(memory)
    list(imagine(model, frames=8, memory=memory, write_last=False))
    assert len(memory) == before


def test_cancel_stops_between_two_steps(model):
    asked = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) > 3

    chunks = imagine(model, cancelled=cancelled)
    next(chunks)
    with pytest.raises(Cancelled):
        next(chunks)
    assert len(asked) == 4


def test_unrefined_cameras_stay_as_planned(model):
    """Noise shares no features with noise, so the rollout equals that without refinement."""
    refined = list(imagine(model, refine_cameras=True))
    # a chunk tells of the one before
    assert all(chunk.refinement and all(chunk.refinement) for chunk in refined[1:])
    planned = list(imagine(model))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(refined, planned, strict=True))


@pytest.mark.parametrize('frames', [0, 7, 12])
def test_partial_chunks_are_rejected(model, frames):
    with pytest.raises(ValueError, match='multiple of 8'):
        next(imagine(model, frames=frames))
