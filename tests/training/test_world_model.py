from __future__ import annotations

from dataclasses import replace

from models import small_vae
import numpy as np
import pytest
from small_data import clip_of, save_data, small_objective
import torch

from mirage_model.data.latents import encode_clip, load_latents
from mirage_model.memory.registry import MEMORIES
from mirage_model.model.codec import Codec
from mirage_model.training.config import ContextConfig, WorldModelConfig
from mirage_model.training.simulated_memory import write
from mirage_model.training.stages import TRAINED
from mirage_model.training.world_model import WorldModelObjective

OWN = {'imagined': 1.0, 'imagined_from': 3, 'imagined_steps': 2}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    clips = [clip_of(name, seed) for seed, name in enumerate('abcd')]
    return save_data(
        tmp_path_factory.mktemp('data'), {'train': clips[:3], 'validation': clips[3:]}
    )


def objective(folders, stage: str, *, context: dict | None = None, **fields):
    config = WorldModelConfig(
        stage=stage,
        batch=2,
        lora_rank=4,
        sampler_steps=2,
        context=replace(ContextConfig(), **(context or {})),
        **fields,
    )
    return small_objective(folders, config)


def step(trained: WorldModelObjective, seed: int = 0, at: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return trained.step(trained.module, np.random.default_rng(seed), generator, at)


def true_velocity(trained: WorldModelObjective, error: float = 0.0):
    """Return a model that knows the true chunks, but for an equal error everywhere."""
    chunks = [trained._read(path)[0] for path in paths(trained)]
    chunks = torch.cat(chunks)

    def velocity(latents, times, side):
        sigma = (times / 1000)[:, None, :, None, None]
        true = []
        for one in latents:
            start = (chunks[:, :, 0] - one[:, 0]).abs().flatten(1).amax(dim=1)
            true.append(chunks[int(start.argmin())])
        true = torch.stack(true) + error
        return (latents - true) / sigma.clamp(min=1e-3)

    return velocity


def paths(trained):
    return [trained.chunks.path(shard) for shard in trained.chunks.shards]


def test_encoded_clips_have_the_tensors_of_training(folders):
    tensors, cameras = load_latents(folders / 'latents' / 'train' / 'a.safetensors')
    assert tensors['video'].shape == (2, 4, 5, 4, 6) and tensors['stills'].shape == (9, 4, 4, 6)
    assert tensors['valid'].all() and torch.allclose(tensors['depth'], torch.tensor(3.0))
    assert len(cameras) == 9 and (cameras.height, cameras.width) == (4, 6)
    assert cameras.times.tolist() == [k / 2 for k in range(9)]
    # a chunk begins with the still it was given
    torch.testing.assert_close(
        tensors['video'][1, :, 0], tensors['stills'][4], atol=5e-3, rtol=5e-3
    )


def test_a_clip_shorter_than_a_chunk_is_rejected():
    with pytest.raises(ValueError, match='short: 9 frames'):
        encode_clip(clip_of('short', 0, frames=9), Codec(small_vae()), chunk_frames=17)


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


@pytest.mark.parametrize('context', [{}, OWN])
def test_a_step_follows_from_its_seed(folders, context):
    trained = objective(folders, 'joint', context=context)
    assert step(trained, 1, 3).loss == step(trained, 1, 3).loss
    assert step(trained, 1, 3).loss != step(trained, 2, 3).loss


@pytest.mark.parametrize('stage', ['joint', 'adapter'])
def test_gradient_checkpointing_changes_no_gradient(folders, stage):
    gradients = []
    for gradient_checkpointing in (False, True):
        trained = objective(folders, stage, gradient_checkpointing=gradient_checkpointing)
        with torch.no_grad():
            for projection in trained.module.backbone.side_branch.proj_out:
                projection.weight.fill_(0.1)
        step(trained).loss.backward()
        gradients.append({n: p.grad for n, p in trained.module.named_parameters()})
    assert any(grad is not None for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, msg=name)


def test_the_context_frame_is_clean_and_without_loss(folders):
    trained = objective(folders, 'backbone')
    seen = {}

    def forward(latents, times, side):
        seen.update(latents=latents, times=times)
        return torch.zeros_like(latents).requires_grad_()

    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    trained.step(forward, rng, generator, 0)
    assert (seen['times'][:, 0] == 0).all() and (seen['times'][:, 1:] > 0).all()
    first = int(np.random.default_rng(0).integers(len(trained.chunks), size=2)[0])
    path, chunk = trained.chunks.chunk(first)
    still = load_latents(path)[0]['video'][chunk, :, 0].float()
    assert torch.equal(seen['latents'][0, :, 0], still)


def last_call(trained, velocity, at: int, seed: int = 0):
    """Return the inputs of a step, without those of the generated contexts before it."""
    calls = []

    def forward(latents, times, side):
        calls.append((latents, times, side))
        return velocity(latents, times, side).requires_grad_()

    generator = torch.Generator().manual_seed(seed)
    trained.step(forward, np.random.default_rng(seed), generator, at)
    return calls


def test_generated_contexts_begin_at_their_step(folders):
    trained = objective(folders, 'joint', context={**OWN, 'imagined': 0.5})
    velocity = true_velocity(trained, error=0.5)
    assert len(last_call(trained, velocity, at=2)) == 1
    *imagining, asked = last_call(trained, velocity, at=3)
    # the share of the batch, in the configured number of steps, without gradients
    assert [len(latents) for latents, _, _ in imagining] == [1, 1]
    assert all(not latents.requires_grad for latents, _, _ in imagining)
    stills = torch.cat([trained._read(path)[1].latents for path in paths(trained)])
    distances = [(stills - one[:, 0]).abs().amax(dim=(1, 2, 3)).min() for one in asked[0]]
    assert distances[0] == pytest.approx(0.5, abs=0.01) and distances[1] < 0.01


def test_a_perfect_model_generates_the_true_latents(folders):
    """The oracle of carrying errors over to stills: where there are none the stills are the true
    ones."""
    quiet = dict.fromkeys(('depth_frame', 'depth_cell', 'position', 'rotation', 'latent'), 0.0)
    shares = {'empty': 0.0, 'seed_only': 1.0, 'rollout': 0.0, 'visits': 0.0}
    trained = objective(folders, 'joint', context={**OWN, **quiet, **shares, 'drop': 0.0})
    *_, (latents, _, side) = last_call(trained, true_velocity(trained), at=3)
    for one, told in zip(latents, side, strict=True):
        stills = [trained._read(path)[1] for path in paths(trained)]
        found = [s for s in stills if (s.latents[4] - one[:, 0]).abs().max() < 0.01]
        assert len(found) == 1
        # the memory holds the seed, observed, and the true stills of the chunk before as imagined
        memory = trained._memory('latent')
        for part, observed in ((found[0][:1], True), (found[0][1:5], False)):
            write(
                memory,
                part,
                observed=observed,
                rng=np.random.default_rng(0),
                config=trained.config.context,
            )
        truth = memory.readout(found[0].cameras[4:9])
        assert (truth.visible & ~truth.observed).any() and truth.observed.any()
        assert torch.equal(told[4].bool(), truth.visible)
        assert torch.equal(told[5].bool(), truth.observed)
        torch.testing.assert_close(told[:4].movedim(0, 1), truth.latents, atol=0.02, rtol=0.02)


def test_generated_contexts_need_clips_of_two_chunks(tmp_path):
    clips = [clip_of('one', 0, frames=17)]
    root = save_data(tmp_path, {'train': clips, 'validation': clips})
    trained = objective(root, 'joint', context=OWN)
    step(trained, at=2)
    with pytest.raises(ValueError, match=r'one\.safetensors: has one chunk.*context\.imagined'):
        step(trained, at=3)


@pytest.mark.parametrize('memory', MEMORIES)
def test_every_memory_trains_and_validates(folders, memory):
    trained = objective(folders, 'side_branch', memory=memory, context={**OWN, 'imagined_from': 0})
    step(trained).loss.backward()
    figures = trained.validate(None, 0)
    assert set(figures) == {f'{n}_psnr_db' for n in ('memory', 'empty', 'repeat_seed', 'codec')}
    assert all(np.isfinite(value) for value in figures.values())


def test_without_memory_the_side_input_is_rays_alone(folders):
    trained = objective(folders, 'joint', memory='none', context=OWN)
    *_, (_, _, side) = last_call(trained, true_velocity(trained), at=3)
    assert (side[:, :-6] == 0).all() and (side[:, -6:] != 0).any()


def test_the_dynamic_filter_masks_dynamic_objects(tmp_path):
    """A dynamic object fills the left half of every frame, down to its feet."""
    clip = clip_of('mover', 0)
    moving = clip.moving.clone()
    moving[:, 8:24, :24] = True
    clip = replace(clip, moving=moving, depth=clip.depth.masked_fill(moving, torch.nan))
    root = save_data(tmp_path, {'train': [clip], 'validation': [clip]})
    kept = {}
    for dynamic_filter in (True, False):
        trained = objective(root, 'joint', dynamic_filter=dynamic_filter)
        stills = trained._read(paths(trained)[0])[1]
        kept[dynamic_filter] = stills.valid
    assert not kept[True][:, 1:3, :3].any() and kept[True][:, :, 3:].all()
    assert kept[False].all()
    torch.testing.assert_close(stills.depth, torch.full_like(stills.depth, 3.0))


def test_recalled_frames_lie_around_the_chunk(folders):
    trained = objective(
        folders, 'joint', references=2, preceding=2, recall=1.0, context={'imagined': 0.0}
    )
    calls = []

    def velocity(latents, times, side, *, references=0):
        calls.append((latents, times, side, references))
        return torch.zeros_like(latents[:, :, references:])

    trained.step(velocity, np.random.default_rng(0), torch.Generator().manual_seed(0), 0)
    ((latents, times, side, references),) = calls
    assert references == 2 and latents.shape[2] == 2 + 5 + 2 and side.shape[2] == 5 + 2
    assert (times[:, [0, 1, 2, 7, 8]] == 0).all() and (times[:, 3:7] > 0).all()
    clips = [trained._read(path) for path in paths(trained)]
    for sample in latents:
        context = [(video[1, :, 0] - sample[:, 2]).abs().amax() for video, _ in clips]
        video, singles = clips[int(np.argmin(context))]
        assert torch.equal(sample[:, 7:], video[0, :, 2:4])
        earlier = singles.latents[:4]
        for reference in sample[:, :2].movedim(1, 0):
            assert (earlier == reference).flatten(1).all(dim=1).any()


@pytest.mark.parametrize('stage', ['joint', 'adapter'])
def test_official_input_trains_with_recalled_frames(folders, stage):
    trained = objective(
        folders,
        stage,
        side_input='official',
        lora_targets='all',
        references=2,
        preceding=2,
        recall=1.0,
    )
    step(trained).loss.backward()
    embedding = trained.module.backbone.side_branch.embedding
    assert embedding.in_channels == 8
    adapters = [name for name, _ in trained.module.named_parameters() if 'lora_A' in name]
    assert len(adapters) == (30 if stage == 'adapter' else 0)
