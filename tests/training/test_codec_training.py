from __future__ import annotations

from dataclasses import replace

from models import small_vae
import numpy as np
import pytest
from small_data import clip_of
import torch

from mirage_model.cli import main
from mirage_model.clip import save_clip
from mirage_model.model.codec import Codec
from mirage_model.training.codec import (
    STAGES,
    CodecObjective,
    balance,
    fold,
    misalignment,
    normalise,
)
from mirage_model.training.config import CodecConfig, TrainerConfig
from mirage_model.training.trainer import make_optimizer

CONFIG = CodecConfig(frames=9, batch=2, crop=32, validation_clips=1)


@pytest.fixture
def clips(tmp_path):
    for split in ('train', 'validation'):
        (tmp_path / split).mkdir()
        save_clip(tmp_path / split / 'a.safetensors', clip_of('a', 0, frames=17))
    return tmp_path


def objective(clips, **fields) -> CodecObjective:
    torch.manual_seed(0)
    vae = small_vae()
    return CodecObjective(
        vae.train().requires_grad_(True),
        replace(CONFIG, **fields),
        clips / 'train',
        clips / 'validation',
    )


def step(trained: CodecObjective, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return trained.step(trained.module, np.random.default_rng(seed), generator, seed)


def test_misalignment_is_relative_to_principal_variances():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 5, 6, generator=generator)
    assert misalignment(latents, latents) == 0
    apart = latents.clone()
    apart[:, :, 0] += 100  # the first latent frame is a still in both
    apart[:, :, 1:] += 0.5 * torch.randn(2, 3, 3, 5, 6, generator=generator)

    cells = latents.double().movedim(1, -1).reshape(-1, 3)
    error = (apart - latents).double()[:, :, 1:].movedim(1, -1).reshape(-1, 3)
    values, directions = torch.linalg.eigh(torch.cov(cells.T))
    expected = ((error @ directions).square().mean(dim=0) / values).mean().float()
    torch.testing.assert_close(misalignment(latents, apart), expected, rtol=1e-3, atol=0)

    mixed = torch.randn(3, 3, generator=generator) + 2 * torch.eye(3)
    latents, apart = (torch.einsum('ij,bjkhw->bikhw', mixed, one) for one in (latents, apart))
    torch.testing.assert_close(misalignment(latents, apart), expected, rtol=1e-2, atol=0)


def test_single_frame_latents_are_of_the_last_frame(clips):
    trained = objective(clips, alignment=1.0)
    x = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        _, latents, alone, _ = trained.module(x, torch.zeros(()))
        stills = Codec(trained.module.vae).encode_images(
            ((x[0] + 1) / 2)[:, [0, 4, 8]].movedim(1, 0)
        )
    assert latents.shape == alone.shape
    # the small codec's statistics: mean 0.1, deviation 0.5
    torch.testing.assert_close(alone[0].movedim(0, 1), stills * 0.5 + 0.1, atol=1e-4, rtol=1e-3)


def test_alignment_brings_clips_to_single_frame_latents(clips):
    trained = objective(clips, alignment=1.0)
    optimizer = make_optimizer(trained.module, 5e-3, 0.0)
    apart = []
    for seed in range(8):
        result = step(trained, seed)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        apart.append(result.logs['misalignment'])
    assert np.mean(apart[-3:]) < 0.7 * np.mean(apart[:3])


def test_without_alignment_nothing_is_encoded_twice(clips):
    trained = objective(clips)
    assert 'misalignment' not in step(trained).logs
    assert trained.module(torch.zeros(1, 3, 5, 16, 16), torch.zeros(()))[2] is None


def test_reprojection_has_a_gradient_to_the_encoder(clips):
    without, with_pairs = objective(clips), objective(clips, pairs=2)
    results = [step(one) for one in (without, with_pairs)]
    assert not hasattr(without.module, 'head')
    assert {'reprojected_psnr_db', 'reprojection_error'} <= results[1].logs.keys() - results[
        0
    ].logs.keys()
    losses = [result.loss for result in results]
    (losses[1] - losses[0].detach()).backward()
    named = dict(with_pairs.module.named_parameters())
    assert all(p.grad is not None for name, p in named.items() if 'head' in name)
    encoder = [p for name, p in named.items() if 'encoder' in name]
    assert any(p.grad is not None and p.grad.any() for p in encoder)
    again = step(objective(clips, pairs=2))
    assert again.loss == losses[1] and again.names == results[1].names


@pytest.mark.slow
def test_training_with_pairs_makes_latents_move_better(clips):
    trained = objective(clips, pairs=4, noise=0.0)
    optimizer = make_optimizer(trained.module, 5e-3, 0.0)
    errors = []
    for seed in range(12):
        result = step(trained, seed % 3)
        errors.append(result.logs['reprojection_error'])
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert np.mean(errors[-3:]) < 0.8 * np.mean(errors[:3])


def test_pairs_that_show_nothing_bear_no_loss(clips):
    trained = objective(clips, pairs=2)
    both, cell, *rest = trained._pairs(np.random.default_rng(0), torch.Generator())
    nothing = torch.full_like(cell, -1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 1, 32, 32, generator=generator)
    *_, resampled = trained.module(x, torch.zeros(1, 4, 1, 4, 4), (both, nothing, *rest))
    loss, logs = trained._reprojection_loss(both, nothing, *resampled)
    assert torch.isfinite(loss) and logs['reprojection_error'] == 0


def test_validation_reports_quality_and_misalignment(clips):
    figures = objective(clips, alignment=1.0).validate(None, 0)
    assert set(figures) == {'psnr_db', 'psnr_db_sd', 'chroma_ratio', 'misalignment'}
    assert all(np.isfinite(value) for value in figures.values())


def test_a_folded_change_turns_the_latents_and_leaves_the_frames():
    vae = small_vae()
    x = torch.rand(1, 5, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    before = Codec(vae)
    latents = before.encode(x)
    frames = before.decode(latents)
    change = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    fold(vae, change)
    after = Codec(vae)
    torch.testing.assert_close(
        after.encode(x), torch.einsum('dc,bckhw->bdkhw', change, latents), atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(after.decode(after.encode(x)), frames, atol=1e-4, rtol=1e-3)


def test_balanced_latents_have_directions_of_like_deviation(clips):
    vae = small_vae()
    paths = [clips / 'train' / 'a.safetensors']
    normalise(vae, paths)
    mixed = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    # one direction holds nearly all, and no channel shows it
    fold(vae, mixed @ torch.diag(torch.tensor([100.0, 1.0, 1.0, 0.01])))
    frames = torch.rand(1, 5, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    before = Codec(vae).decode(Codec(vae).encode(frames))
    balance(vae, paths)
    codec = Codec(vae)
    torch.testing.assert_close(codec.decode(codec.encode(frames)), before, atol=1e-3, rtol=1e-2)
    cells = codec.encode(clip_of('a', 0, frames=17).frames.permute(0, 3, 1, 2)[None] / 255)
    cells = cells.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(cells.std(dim=0), torch.ones(4), atol=0.02, rtol=0.02)
    deviations = torch.linalg.eigvalsh(torch.cov(cells.T)).sqrt()
    assert deviations.max() / deviations.min() < 30


def test_balanced_latents_are_rotated_to_another_codec(clips):
    """The latents of a codec that differs by little more than a rotation are restored."""
    vae = small_vae()
    paths = [clips / 'train' / 'a.safetensors']
    balance(vae, paths)
    vae.save_pretrained(clips / 'before')
    before = Codec.from_folder(clips / 'before')
    fold(vae, torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q)
    frames = clip_of('a', 0, frames=17).frames.permute(0, 3, 1, 2)[None] / 255
    wanted = before.encode(frames)
    assert (Codec(vae).encode(frames) - wanted).square().mean() > 0.5
    balance(vae, paths, before)
    assert (Codec(vae).encode(frames) - wanted).square().mean() < 0.01


@pytest.mark.parametrize('stage', ['video', 'aligned', 'reprojection'])
def test_the_command_continues_from_a_vae_folder(stage, tmp_path, clips, monkeypatch, capsys):
    """A tiny step leaves the output unchanged, at any size."""
    small_vae().save_pretrained(tmp_path / 'given')
    config = replace(STAGES[stage][0], batch=2, crop=16, validation_clips=1)
    trainer = TrainerConfig(steps=1, learning_rate=1e-6)
    monkeypatch.setitem(STAGES, stage, (config, trainer))

    def run(start):
        words = ['--clips', clips, '--run', tmp_path / 'run', '--from', start, '--stage', stage]
        return main(['train', 'codec', *map(str, words)])

    assert run(tmp_path / 'given') == 0
    before, after = (Codec.from_folder(tmp_path / name) for name in ('given', 'run/vae'))
    frames = clip_of('a', 0, frames=17).frames.permute(0, 3, 1, 2)[None] / 255
    shown = [codec.decode(codec.encode(frames)) for codec in (before, after)]
    torch.testing.assert_close(*shown, atol=1e-3, rtol=1e-2)
    assert run(tmp_path / 'nothing') == 1
    assert 'nothing does not exist, must be a file or folder' in ' '.join(
        capsys.readouterr().err.split()
    )
