from __future__ import annotations

from models import small_vae
import numpy as np
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.clip import Clip, save_clip
from mirage_model.evaluation.reprojection_quality import (
    GAPS,
    evaluate,
    pairs_of,
    reproject,
    to_markdown,
)
from mirage_model.model.codec import Codec


def still_clip(name: str = 'wall', step: float = 0.0) -> Clip:
    """Return a clip of a wall 2 m away, from a camera that stands or moves sideways."""
    generator = torch.Generator().manual_seed(len(name))
    picture = torch.randint(0, 256, (1, 32, 48, 3), dtype=torch.uint8, generator=generator)
    world_from_camera = torch.eye(4).repeat(33, 1, 1)
    world_from_camera[:, 0, 3] = step * torch.arange(33)
    K = torch.tensor([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])
    nothing = torch.zeros(33, 32, 48, dtype=torch.bool)
    return Clip(
        name=name,
        frames=picture.repeat(33, 1, 1, 1),
        cameras=Cameras(
            K=K.expand(33, 3, 3),
            world_from_camera=world_from_camera,
            times=torch.arange(33, dtype=torch.float64) / 8,
            height=32,
            width=48,
        ),
        depth=torch.full((33, 32, 48), 2.0),
        sky=nothing,
        moving=nothing.clone(),
    )


@pytest.mark.parametrize('splat_size', [1, 3])
def test_latents_at_the_same_camera_are_unchanged(splat_size):
    codec = Codec(small_vae())
    pair = pairs_of(still_clip(), codec, gap=8, rng=np.random.default_rng(0))
    x, covered = reproject(pair, codec, 'image', splat_size)
    assert covered.all()
    torch.testing.assert_close(x[:, :4], codec.encode_images(pair.source))
    torch.testing.assert_close(
        x[:, 4:], torch.cat([torch.ones(1, 1, 4, 6), torch.zeros(1, 3, 4, 6)], 1)
    )


def test_pixels_at_the_same_camera_are_unchanged():
    codec = Codec(small_vae())
    pair = pairs_of(still_clip(), codec, gap=8, rng=np.random.default_rng(0))
    x, covered = reproject(pair, codec, 'pixels', 1)
    assert covered.all()
    torch.testing.assert_close(x[:, :4], codec.encode_images(pair.source), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_table_has_every_method_and_gap(tmp_path):
    for name in ('wall', 'corner', 'floor'):
        save_clip(tmp_path / f'{name}.safetensors', still_clip(name, step=0.02))
    clips = sorted(tmp_path.glob('*.safetensors'))
    table = evaluate(Codec(small_vae()), clips[:2], clips[2:], pairs=3, training_pairs=6, steps=2)
    for by_gap in table.values():
        for gap in GAPS:
            figures = by_gap[str(gap)]
            assert figures['pairs'] == 3 and 0 < figures['coverage'] <= 1
            assert np.isfinite([figures['learned'], figures['raw'], figures['codec']]).all()
    assert to_markdown(table).count('\n') == 2 + len(table)
