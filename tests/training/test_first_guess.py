from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from small_data import clip_of
import torch
from torch.nn import functional as F

from mirage_model.cli import main
from mirage_model.clip import Clip, save_clip
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import load_resampler
from mirage_model.training import first_guess
from mirage_model.training.config import FirstGuessConfig
from mirage_model.training.first_guess import fit, fit_codec

SMALL = FirstGuessConfig(width=8, contexts=2, targets=2, steps=3, batch=2, frame_step=4)


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


def test_fit_reprojects_its_training_pairs(tmp_path):
    clip = smooth_clip('a', 0)
    save_clip(tmp_path / 'a.safetensors', clip)
    vae, resampler = fit([tmp_path / 'a.safetensors'], replace(SMALL, width=0, contexts=8))
    codec = Codec(vae)
    pairs = first_guess.read_pairs(clip, codec, SMALL, first_guess.np.random.default_rng(5))[0]
    visible = pairs.memory.visible
    guess = resampler.resample(pairs.memory).movedim(1, -1)[visible]
    target = pairs.targets.movedim(1, -1)[visible]
    plain = pairs.memory.latents.movedim(1, -1)[visible]
    assert visible.any()
    assert (guess - target).square().mean() < 0.5 * (plain - target).square().mean()


def test_command_writes_codec_and_resampler(tmp_path):
    (tmp_path / 'clips').mkdir()
    save_clip(tmp_path / 'clips' / 'a.safetensors', smooth_clip('a', 0))

    def run(clips: Path) -> int:
        words = ['--clips', clips, '--out', tmp_path / 'out', '--steps', 2, '--width', 8]
        return main(['train', 'first-guess', *map(str, words)])

    assert run(tmp_path / 'clips') == 0
    assert Codec.from_folder(tmp_path / 'out' / 'vae').channels == 16
    assert load_resampler(tmp_path / 'out' / 'resampler').config.width == 8
    assert run(tmp_path) == 1
