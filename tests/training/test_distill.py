"""Distillation to few steps, and captions in training."""

from __future__ import annotations

from dataclasses import replace

from models import save_text_encoder, small_backbone, small_vae
import numpy as np
import pytest
from small_data import clip_of, save_data, small_objective
import torch

from mirage_model.data.latents import IndexWriter, Shard
from mirage_model.model.codec import Codec
from mirage_model.model.sampler import few_step_scheduler, sample_chunk
from mirage_model.model.text import PromptEncoder
from mirage_model.training.config import ContextConfig, DistillConfig, WorldModelConfig
from mirage_model.training.distill import DistillObjective
from mirage_model.training.stages import WorldModel
from mirage_model.training.world_model import WorldModelObjective


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    clips = [clip_of(name, seed) for seed, name in enumerate('ab')]
    return save_data(
        tmp_path_factory.mktemp('data'), {'train': clips[:1], 'validation': clips[1:]}
    )


def lively_model() -> WorldModel:
    """Return a model whose velocity is not small."""
    torch.manual_seed(0)
    model = WorldModel(small_backbone(), torch.randn(1, 8))
    with torch.no_grad():
        model.backbone.wan.proj_out.weight.mul_(20)
        for projection in model.backbone.side_branch.proj_out:
            projection.weight.normal_(std=0.5)
    return model


def distilled(folders, *, captions=None, **fields) -> DistillObjective:
    config = WorldModelConfig(
        stage='joint',
        batch=3,
        distill=DistillConfig(**fields),
        context=ContextConfig(imagined=0.0),
    )
    arguments = folders / 'latents', folders / 'clips', Codec(small_vae())
    return DistillObjective(lively_model(), config, *arguments, captions=captions)


def batch_of(objective: WorldModelObjective, seed: int = 0):
    return objective._batch(objective.module, np.random.default_rng(seed), 0)


def test_undistilled_model_has_no_error_at_one_substep(folders):
    """With one substep a segment is one step of the teacher, which the model equals."""
    objective = distilled(folders, steps=3, substeps=1)
    loss = objective.loss(objective.module, batch_of(objective), torch.Generator().manual_seed(1))
    assert float(loss.detach()) < 1e-8


def test_loss_equals_its_definition(folders):
    """The oracle walks from each sample's noise level to the end of its segment by hand."""
    objective = distilled(folders, steps=2, substeps=3)
    student, teacher = objective.module, lively_model()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01)
    batch = batch_of(objective)
    loss = objective.loss(student, batch, torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    index = torch.randint(6, (3,), generator=generator).tolist()
    noise = torch.randn(batch.target.shape, generator=generator)
    scheduler = few_step_scheduler(objective.config.shift)
    scheduler.set_timesteps(6)
    levels = scheduler.sigmas.tolist()
    assert len(levels) == 7 and levels[-1] == 0
    errors = []
    for row, i in enumerate(index):
        sigma, after, end = levels[i], levels[i + 1], levels[3 if i < 3 else 6]

        def velocity(model, latents, level, row=row):
            times = torch.full((1, latents.shape[2]), 1000 * level)
            times[:, 0] = 0
            return model(latents, times, batch.side[row : row + 1])

        x = (1 - sigma) * batch.target[row : row + 1] + sigma * noise[row : row + 1]
        x[:, :, 0] = batch.context[row]
        with torch.no_grad():
            near = x + (after - sigma) * velocity(teacher, x, sigma)
            near[:, :, 0] = batch.context[row]
            goal = near + (end - after) * velocity(student, near, after)
            aim = (goal - x) / (end - sigma)
            errors.append((velocity(student, x, sigma) - aim)[:, :, 1:].square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_few_steps_come_near_to_the_teachers_many(folders):
    """One step of the distilled model ends nearer to sixteen of the teacher than its own one."""
    objective = distilled(folders, steps=1, substeps=8)
    teacher, student = lively_model(), objective.module
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    batch = batch_of(objective)
    for _ in range(40):
        loss = objective.loss(student, batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def generate(model: WorldModel, steps: int) -> torch.Tensor:
        return sample_chunk(
            lambda latents, times, text, side, references: model(latents, times, side),
            objective.scheduler(),
            context=batch.context[:, :, None],
            latent_frames=batch.target.shape[2],
            side=batch.side,
            text=torch.zeros(3, 1, 8),
            steps=steps,
            generator=torch.Generator().manual_seed(5),
        )

    many = generate(teacher, 16)
    before, after = (
        (generate(model, 1) - many).square().mean().sqrt() for model in (teacher, student)
    )
    assert after < 0.75 * before


def test_distilled_runs_are_validated_in_their_steps(folders):
    objective = distilled(folders, steps=2)
    assert objective.config.sampler_steps == objective.config.context.imagined_steps == 2
    assert objective.validate(None, 0)['memory_psnr_db'] > 0


@pytest.fixture(scope='module')
def captioned(folders, tmp_path_factory):
    """Return the data with a caption on the training clip, and its embeddings."""
    writer = IndexWriter(folders / 'latents' / 'train')
    writer.add(Shard(name='a', scene='wall', chunks=2, text='a quiet room'))
    writer.close()
    root = tmp_path_factory.mktemp('text')
    return PromptEncoder(save_text_encoder(root / 'encoder'), root / 'store', tokens=4)


def texts(folders, captions, dropout: float) -> torch.Tensor:
    config = WorldModelConfig(stage='joint', batch=200, caption_dropout=dropout)
    objective = small_objective(folders, replace(config, context=ContextConfig(imagined=0.0)))
    objective.captions = captions
    objective.module.text = torch.nn.Parameter(torch.zeros(4, 8))
    paths = [objective.chunks.chunk(0)[0]] * 200
    (rows,) = objective._embedded(paths, np.random.default_rng(0), dropout)
    return rows


def test_a_tenth_of_the_captions_is_dropped(folders, captioned):
    rows = texts(folders, captioned, WorldModelConfig().caption_dropout)
    dropped = (rows == 0).all(dim=(1, 2))
    assert 0.05 < dropped.float().mean() < 0.15
    assert torch.equal(rows[~dropped][0], captioned.embed('a quiet room'))
    assert (texts(folders, captioned, 0.0) == captioned.embed('a quiet room')).all()


def test_captions_reach_loss_and_teacher(folders, captioned):
    losses = []
    for guidance in (1.0, 5.0):
        objective = distilled(folders, captions=captioned, steps=2, guidance=guidance)
        objective.module.text.data = torch.zeros(4, 8)
        batch = batch_of(objective)
        assert batch.texts[0].shape == (3, 4, 8)
        losses.append(objective.loss(objective.module, batch, torch.Generator().manual_seed(1)))
    assert losses[0] != losses[1]
