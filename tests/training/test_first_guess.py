from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path

import numpy as np
import pytest
from small_data import clip_of
import torch
from torch.nn import functional as F

from mirage_model.cli import main
from mirage_model.clip import Clip, save_clip
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import Resampler, ResamplerConfig, load_resampler
from mirage_model.training.config import FirstGuessConfig
from mirage_model.training.first_guess import (
    ResamplerObjective,
    fit_codec,
    fit_linear,
    principal_codec,
    read_all_pairs,
    read_pairs,
)

SMALL = FirstGuessConfig(width=8, contexts=2, targets=2, batch=2, frame_step=4)


def smooth_clip(name: str, seed: int) -> Clip:
    """A smooth picture on a wall that slides by three pixels a frame."""
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


def test_linear_map_reprojects_its_pairs(tmp_path):
    clip = smooth_clip('a', 0)
    save_clip(tmp_path / 'a.safetensors', clip)
    config = replace(SMALL, contexts=8)
    codec = Codec(principal_codec([tmp_path / 'a.safetensors'], config))
    pairs = read_all_pairs([tmp_path / 'a.safetensors'], codec, config, seed=0)
    resampler = Resampler(ResamplerConfig(channels=config.channels, width=0))
    fit_linear(resampler, pairs, ridge=config.ridge)
    pairs = read_pairs(clip, codec, SMALL, np.random.default_rng(5))[0]
    visible = pairs.memory.visible
    guess = resampler.resample(pairs.memory).movedim(1, -1)[visible]
    target = pairs.targets.movedim(1, -1)[visible]
    plain = pairs.memory.latents.movedim(1, -1)[visible]
    assert visible.any()
    assert (guess - target).square().mean() < 0.5 * (plain - target).square().mean()


def first_guess_run(clips: Path, run: Path, *words: object) -> int:
    options = ['--clips', clips, '--run', run, '--width', 8, '--batch', 2, '--contexts', 1, *words]
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
    assert Codec.from_folder(run / 'vae').channels == 16
    assert load_resampler(run / 'resampler').config.width == 8
    (line,) = (run / 'validation.jsonl').read_text().splitlines()
    assert json.loads(line)['error'] > 0
    assert first_guess_run(tmp_path, run) == 1


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
