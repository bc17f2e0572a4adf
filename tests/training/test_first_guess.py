from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_data import clip_of
import torch
from torch.nn import functional as F

from mirage_model.cli import main
from mirage_model.clip import Clip, save_clip
from mirage_model.metrics import psnr
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import Resampler, load_resampler
from mirage_model.training.config import FirstGuessConfig
from mirage_model.training.first_guess import (
    SMALLEST_ERROR,
    ResamplerObjective,
    fit_codec,
    losses,
    principal_codec,
)
from mirage_model.training.first_guess_samples import Targets, read_samples, read_targets
from mirage_model.training.simulated_memory import over_pixels

SMALL = FirstGuessConfig(widths=(8,), targets=2, frame_step=4)


def smooth_clip(name: str, seed: int) -> Clip:
    """Return a clip of a smooth picture on a wall that slides by three pixels a frame."""
    clip = clip_of(name, seed)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, 6, 40, generator=generator)
    wide = F.interpolate(noise, (32, 320), mode='bicubic').clamp(0, 1)[0]
    pixels = 3
    frames = torch.stack([wide[:, :, pixels * t : pixels * t + 48] for t in range(33)])
    world_from_camera = clip.cameras.world_from_camera.clone()
    world_from_camera[:, 0, 3] = pixels * 3.0 / 24.0 * torch.arange(33)
    return replace(
        clip,
        frames=(frames * 255).round().byte().permute(0, 2, 3, 1).contiguous(),
        cameras=replace(clip.cameras, world_from_camera=world_from_camera),
    )


def test_codec_is_exact_with_all_components():
    frames = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    codec = Codec(fit_codec(frames, channels=48, stride=4))
    latents = codec.encode_images(frames)
    torch.testing.assert_close(codec.decode_images(latents), frames, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(48), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(48), atol=1e-2, rtol=0)


def targets_of(path: Path, *, continued: bool) -> tuple[Targets, Resampler, Codec]:
    """Return targets of a smooth clip without errors."""
    save_clip(path, smooth_clip('a', 0))
    names = ('depth_frame', 'depth_cell', 'position', 'rotation', 'latent', 'drop')
    exact = replace(SMALL.noise, **dict.fromkeys(names, 0.0))
    config = replace(SMALL, noise=exact, empty=0.0, visits=0.0, colour=0.0)
    codec = Codec(principal_codec([path], config))
    resampler = Resampler.of_codec(codec, ())
    rng = np.random.default_rng(5)
    part = read_targets(path, resampler, codec, config, rng, continued=continued)
    assert len(part.frames) == config.targets
    return part, resampler, codec


def test_splat_is_closer_than_the_latents_of_the_memory(tmp_path):
    part, resampler, codec = targets_of(tmp_path / 'a.safetensors', continued=False)
    visible = over_pixels(part.memory.visible, part.frames[:, 0])
    assert visible.any() and torch.equal(part.memory.visible, part.memory.observed)
    guess = codec.decode_images(resampler(part.memory, part.context).detach())
    plain = codec.decode_images(part.memory.latents)
    assert psnr(guess, part.frames, visible) > psnr(plain, part.frames, visible) + 3


def test_continued_targets_see_generated_points(tmp_path):
    part, _, _ = targets_of(tmp_path / 'a.safetensors', continued=True)
    assert (part.memory.visible & ~part.memory.observed).any()


def test_equal_frames_have_the_smallest_loss():
    frames = torch.rand(2, 3, 32, 48)
    observed = torch.rand(2, 32, 48) < 0.5
    best = losses(frames, frames, observed, SMALL)
    assert best['gradient'] == 0 and best['contrast'] == 0
    assert best['all'].item() == pytest.approx(math.log(SMALLEST_ERROR))
    blurred = F.avg_pool2d(frames, 3, stride=1, padding=1)
    for name, value in losses(blurred, frames, observed, SMALL).items():
        assert value > best[name], name


def test_observed_error_counts_observed_pixels_alone():
    frames = torch.rand(1, 3, 32, 48)
    observed = torch.zeros(1, 32, 48, dtype=torch.bool)
    observed[:, :16] = True
    wrong = frames.clone()
    wrong[:, :, 16:] += 0.1
    terms = losses(wrong, frames, observed, SMALL)
    assert terms['observed'].item() == pytest.approx(0.5 * math.log(SMALLEST_ERROR))
    assert terms['holes'].item() == pytest.approx(0.5 * math.log(0.01 + SMALLEST_ERROR), abs=1e-4)


def first_guess_run(clips: Path, run: Path, *words: object) -> int:
    options = ['--clips', clips, '--run', run, '--widths', 8, '--targets', 2]
    options += ['--samples', 4, '--batch', 2, '--imagined', 0.5, *words]
    return main(['train', 'first-guess', *map(str, options)])


@pytest.fixture(scope='module')
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('clips')
    for seed, split in enumerate(('train', 'validation')):
        (folder / split).mkdir()
        save_clip(folder / split / 'a.safetensors', smooth_clip('a', seed))
    return folder


def test_command_writes_codec_and_resampler(clips, tmp_path):
    run = tmp_path / 'run'
    assert first_guess_run(clips, run, '--steps', 2) == 0
    assert Codec.from_folder(run / 'vae').channels == 32
    assert load_resampler(run / 'resampler').config.widths == (8,)
    (line,) = (run / 'validation.jsonl').read_text().splitlines()
    assert json.loads(line)['observed_psnr_db'] > 5
    (samples,) = (run / 'samples').glob('*.safetensors')
    inputs, frames, observed = read_samples(samples, 3, np.random.default_rng(0))
    assert inputs.shape == (3, 3 * 32 + 8, 8, 12) and frames.shape == (3, 3, 32, 48)
    assert observed.shape == (3, 8, 12) and 0 <= frames.min() < frames.max() <= 1
    assert first_guess_run(tmp_path, run) == 1


def test_other_samples_are_rejected(clips, tmp_path, capsys):
    assert first_guess_run(clips, tmp_path / 'run', '--steps', 1) == 0
    assert first_guess_run(clips, tmp_path / 'run', '--steps', 2, '--empty', 0.5) == 1
    assert 'empty' in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_training_equals_an_uninterrupted_one(clips, tmp_path, monkeypatch):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    words = ('--steps', 4, '--warmup-steps', 1, '--checkpoint-every', 2)
    assert first_guess_run(clips, whole, *words) == 0
    step = ResamplerObjective.step

    def interrupted(self, module, rng, generator, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, module, rng, generator, number)

    with monkeypatch.context() as patch:
        patch.setattr(ResamplerObjective, 'step', interrupted)
        assert first_guess_run(clips, parts, *words) == 130
    assert first_guess_run(clips, parts, *words) == 0
    expected, resumed = (load_resampler(run / 'resampler').state_dict() for run in (whole, parts))
    torch.testing.assert_close(resumed, expected, atol=0, rtol=0)
