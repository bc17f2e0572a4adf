from __future__ import annotations

from dataclasses import replace

from models import small_backbone, small_vae
import numpy as np
import pytest
from safetensors.torch import save_file
import torch

from mirage_model.camera import Cameras
from mirage_model.codec import Codec
from mirage_model.data.clip import Clip, save_clip
from mirage_model.data.latents import encode_clip, load_latents
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.training.context import ContextConfig, fill, jitter
from mirage_model.training.world_model import (
    TRAINED,
    WorldModel,
    WorldModelConfig,
    WorldModelObjective,
)

QUIET = {
    'depth_frame': 0.0,
    'depth_cell': 0.0,
    'position': 0.0,
    'rotation': 0.0,
    'latent': 0.0,
    'drop': 0.0,
}


def clip_of(name: str, seed: int) -> Clip:
    """33 frames of a wall 3 m away, the camera moving sideways."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (33, 32, 48, 3), dtype=torch.uint8, generator=generator)
    world_from_camera = torch.eye(4).repeat(33, 1, 1)
    world_from_camera[:, 0, 3] = 0.02 * torch.arange(33)
    K = torch.tensor([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])
    cameras = Cameras(
        K=K.expand(33, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(33, dtype=torch.float64) / 8,
        height=32,
        width=48,
    )
    nothing = torch.zeros(33, 32, 48, dtype=torch.bool)
    depth = torch.full((33, 32, 48), 3.0)
    return Clip(
        name=name, frames=frames, cameras=cameras, depth=depth, sky=nothing, moving=nothing
    )


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    codec = Codec(small_vae())
    for split, names in (('train', ('a', 'b', 'c')), ('validation', ('d',))):
        for kind in ('clips', 'latents'):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(names):
            clip = clip_of(name, index)
            save_clip(root / 'clips' / split / f'{name}.safetensors', clip)
            tensors = encode_clip(clip, codec, chunk_frames=17)
            tensors = {k: v.contiguous() for k, v in tensors.items()}
            save_file(tensors, root / 'latents' / split / f'{name}.safetensors')
    return root


def objective(folders, stage: str, **context) -> WorldModelObjective:
    torch.manual_seed(0)
    model = WorldModel(small_backbone(), torch.randn(1, 8))
    config = WorldModelConfig(
        stage=stage,
        batch=2,
        lora_rank=4,
        sampler_steps=2,
        context=replace(ContextConfig(), **context) if context else ContextConfig(),
    )
    return WorldModelObjective(
        model, config, folders / 'latents', folders / 'clips', Codec(small_vae())
    )


def step(trained: WorldModelObjective, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return trained.step(trained.module, np.random.default_rng(seed), generator, 0)


def test_encoded_clips_hold_what_training_reads(folders):
    tensors, cameras = load_latents(folders / 'latents' / 'train' / 'a.safetensors')
    assert tensors['video'].shape == (2, 4, 5, 4, 6) and tensors['stills'].shape == (9, 4, 4, 6)
    assert tensors['keep'].all() and torch.allclose(tensors['depth'], torch.tensor(3.0))
    assert len(cameras) == 9 and (cameras.height, cameras.width) == (4, 6)
    assert cameras.times.tolist() == [k / 2 for k in range(9)]
    # a chunk begins with the still it was given
    torch.testing.assert_close(
        tensors['video'][1, :, 0], tensors['stills'][4], atol=5e-3, rtol=5e-3
    )


def test_a_clip_shorter_than_a_chunk_is_refused():
    clip = clip_of('short', 0)
    short = replace(
        clip,
        **{
            name: getattr(clip, name)[:9]
            for name in ('frames', 'cameras', 'depth', 'sky', 'moving')
        },
    )
    with pytest.raises(ValueError, match='short: 9 frames'):
        encode_clip(short, Codec(small_vae()), chunk_frames=17)


@pytest.mark.parametrize('stage', TRAINED)
def test_a_stage_trains_its_own_parameters_and_no_others(folders, stage):
    trained = objective(folders, stage)
    before = {n: p.detach().clone() for n, p in trained.module.named_parameters()}
    optimizer = torch.optim.SGD(
        [p for p in trained.module.parameters() if p.requires_grad], lr=0.1
    )
    for seed in range(3):
        optimizer.zero_grad()
        step(trained, seed).loss.backward()
        optimizer.step()
    for name, parameter in trained.module.named_parameters():
        moved = not torch.equal(parameter, before[name])
        allowed = any(word in name for word in TRAINED[stage])
        assert not moved or allowed, name
    assert any(not torch.equal(p, before[n]) for n, p in trained.module.named_parameters())


def test_a_step_follows_from_its_seed(folders):
    trained = objective(folders, 'joint')
    assert step(trained, 1).loss == step(trained, 1).loss
    assert step(trained, 1).loss != step(trained, 2).loss


def test_the_context_frame_is_clean_and_bears_no_loss(folders):
    trained = objective(folders, 'backbone')
    seen = {}

    def forward(latents, times, side):
        seen.update(latents=latents, times=times)
        return torch.zeros_like(latents).requires_grad_()

    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    trained.step(forward, rng, generator, 0)
    assert (seen['times'][:, 0] == 0).all() and (seen['times'][:, 1:] > 0).all()
    rng = np.random.default_rng(0)
    paths = [trained.paths[i] for i in rng.integers(len(trained.paths), size=2)]
    stills = load_latents(paths[0])[0]['video'][:, :, 0].float()
    assert any(torch.equal(seen['latents'][0, :, 0], still) for still in stills)


def test_validation_names_every_baseline(folders):
    figures = objective(folders, 'joint').validate(None, 0)
    assert set(figures) == {f'{n}_psnr_db' for n in ('memory', 'empty', 'repeat_seed', 'codec')}


@pytest.mark.parametrize('kind', ['empty', 'seed_only', 'rollout', 'visits'])
def test_contexts_are_what_they_are_called(folders, kind):
    shares = {name: float(name == kind) for name in ('empty', 'seed_only', 'rollout', 'visits')}
    config = ContextConfig(**shares, **QUIET)
    tensors, cameras = load_latents(folders / 'latents' / 'train' / 'a.safetensors')
    for seed in range(5):
        memory = LatentMemory(MemoryConfig(channels=4, dtype='float32', voxel=0.0))
        rng = np.random.default_rng(seed)
        assert fill(memory, tensors, cameras, now=4, rng=rng, config=config) == kind
        readout = memory.readout(cameras[4:5])
        if kind == 'empty':
            assert len(memory) == 0
        if kind == 'seed_only':
            assert len(memory) == 24 and readout.observed.all()
            torch.testing.assert_close(readout.latents[0], tensors['stills'][4].float())
        if kind == 'rollout':
            assert 24 <= len(memory) <= 24 * 5
        if kind == 'visits':
            assert 24 <= len(memory) <= 24 * 6


def test_shares_of_contexts_add_up():
    with pytest.raises(ValueError, match='add up'):
        ContextConfig(empty=0.5)


def test_jitter_moves_cameras_by_what_it_says():
    cameras = clip_of('a', 0).cameras
    moved = jitter(cameras, np.random.default_rng(0), position=0.1, rotation=1.0)
    shift = (moved.world_from_camera - cameras.world_from_camera)[:, :3, 3]
    assert 0.05 < float(shift.std()) < 0.2
    assert torch.equal(
        jitter(cameras, np.random.default_rng(0), position=0.0, rotation=0.0).K, cameras.K
    )
