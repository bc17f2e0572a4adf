"""References and preceding frames, and the side inputs of published models, along a rollout."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path

from models import CHANNELS, HEIGHT, WIDTH, save_small_model, small_blocks, small_vae
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.model.backbone import Backbone
from mirage_model.model.checkpoint import Model, load_model, save_model
from mirage_model.model.codec import Codec
from mirage_model.model.conditioning import read_scene, side_input
from mirage_model.model.history import History, LatentFrames, choose_references, voxel_iou
from mirage_model.model.rollout import on_latent_grid, rollout
from mirage_model.model.side_branch import SideBranch, SideBranchConfig
from mirage_model.model.taehv import TinyDecoder, TinyDecoderConfig
from mirage_model.perception import Estimate


class FlatWall:
    """Perception of a static world, three metres away everywhere."""

    segments_dynamic = True
    estimates_cameras = False

    def estimate(self, frames, cameras, readout=None):
        depth = torch.full((len(frames), *frames.shape[-2:]), 3.0)
        nothing = torch.zeros_like(depth, dtype=torch.bool)
        return Estimate(
            depth=depth,
            cameras=cameras,
            confidence=torch.ones_like(depth),
            sky=nothing,
            moving=nothing,
            moving_probability=torch.zeros_like(depth),
            scaled=torch.ones(len(frames), dtype=torch.bool),
        )

    def to(self, device):
        pass


def path(count: int, step: float = 0.02) -> Cameras:
    K = torch.tensor([[30.0, 0.0, 23.5], [0.0, 30.0, 15.5], [0.0, 0.0, 1.0]])
    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, 0, 3] = step * torch.arange(count)
    times = torch.arange(count, dtype=torch.float64) / 8
    return Cameras(
        K=K.repeat(count, 1, 1), world_from_camera=pose, times=times, height=HEIGHT, width=WIDTH
    )


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Model:
    folder = save_small_model(tmp_path_factory.mktemp('model') / 'model')
    loaded = load_model(folder)
    return replace(loaded, perception=FlatWall())


def of_kind(model: Model, kind: str, **fields) -> Model:
    torch.manual_seed(3)
    wan = model.backbone.wan
    branch = SideBranch(wan, SideBranchConfig(layers=(0, 2), input=kind))
    for projection in branch.proj_out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    memory = 'rgb_cloud' if kind == 'spatia' else 'latent'
    backbone = Backbone(wan, branch).eval().requires_grad_(False)
    return replace(model, backbone=backbone, config=replace(model.config, memory=memory, **fields))


def generate(model: Model, chunks: int = 3):
    codec = model.codec
    memory = create_memory(model.config.memory, MemoryConfig(channels=CHANNELS), codec)
    cameras = path(8 * chunks + 1)
    frame = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    made = rollout(
        model,
        memory,
        frame,
        cameras[:1],
        cameras[1:],
        steps=2,
        generator=torch.Generator().manual_seed(1),
    )
    return [chunk.frames for chunk in made]


@pytest.mark.parametrize('kind', ['mirage', 'official', 'spatia'])
def test_history_changes_later_chunks_alone(model: Model, kind: str):
    plain = generate(of_kind(model, kind))
    recalling = generate(of_kind(model, kind, references=4, preceding=2))
    assert torch.equal(plain[0], recalling[0])
    assert all(not torch.equal(a, b) for a, b in zip(plain[1:], recalling[1:], strict=True))
    for fields in ({'references': 4}, {'preceding': 2}):
        assert not torch.equal(generate(of_kind(model, kind, **fields), 2)[1], plain[1])


def frames_of(count: int, first: int) -> LatentFrames:
    latents = torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 2, 4, 6)
    return LatentFrames(latents=latents, scene=latents + 100, cameras=path(count))


def numbers(latents: torch.Tensor) -> list[int]:
    return latents[:, 0, 0, 0].int().tolist()


def test_preceding_frames_end_before_the_context():
    history = History()
    assert history.preceding(2) is None
    history.append(frames_of(3, 0))
    history.append(frames_of(3, 2))  # begins with the last frame of the chunk before
    assert len(history) == 5
    assert numbers(history.preceding(2).latents) == [2, 3]
    assert numbers(history.preceding(9).latents) == [0, 1, 2, 3]
    assert numbers(history.preceding(2).scene) == [102, 103]
    assert history.preceding(0) is None


def test_overlap_equals_that_of_python_sets():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sizes = torch.randint(0, 30, (2,), generator=generator).tolist()
        a, b = (torch.randint(0, 3, (n, 3), generator=generator).unique(dim=0) for n in sizes)
        first, second = ({tuple(v) for v in voxels.tolist()} for voxels in (a, b))
        union = len(first | second)
        expected = len(first & second) / union if union else 0.0
        assert voxel_iou(a, b) == pytest.approx(expected)


def test_references_are_the_frames_of_largest_overlap():
    wanted = torch.tensor([[i, 0, 0] for i in range(10)])
    voxels = [wanted[:2], wanted + 100, wanted[:8], wanted[3:5]]
    assert choose_references(wanted, voxels, 8) == [2, 0, 3]
    assert choose_references(wanted, voxels, 1) == [2]


def test_official_input_is_readout_and_white_video(model: Model):
    memory = create_memory('latent', MemoryConfig(channels=CHANNELS), model.codec)
    cameras = on_latent_grid(path(3), model)
    wall = torch.full((1, 4, 6), 3.0)
    latents = torch.randn(1, CHANNELS, 4, 6)
    memory.write(latents, wall, cameras[:1], valid=wall > 0, observed=True)
    readout, scene = read_scene(
        'official', memory, cameras, latents, codec=model.codec, resampler=None
    )
    side = side_input('official', scene, cameras, codec=model.codec)
    white = model.codec.encode(torch.ones(1, 9, 3, HEIGHT, WIDTH))
    assert torch.equal(side[0, :CHANNELS], readout.latents.movedim(1, 0))
    assert torch.equal(side[:, CHANNELS:], white)
    assert model.codec.encode_white(3, 4, 6) is model.codec.encode_white(3, 4, 6)


def test_spatia_input_is_rendered_and_hole_videos(model: Model):
    cameras = path(9)
    memory = create_memory('rgb_cloud', MemoryConfig(channels=CHANNELS), model.codec)
    grid = on_latent_grid(cameras, model)
    none = torch.zeros(1, CHANNELS, 4, 6)
    empty = read_scene(
        'spatia',
        memory,
        grid[::4],
        none,
        codec=model.codec,
        resampler=None,
        frame_cameras=grid,
    )[1]
    black, white = (
        model.codec.encode(torch.full((1, 9, 3, HEIGHT, WIDTH), v)) for v in (0.0, 1.0)
    )
    assert torch.equal(empty.movedim(1, 0), torch.cat([black[0], white[0]]))


def test_memory_must_fit_the_input_of_the_branch(model: Model, tmp_path):
    folder = save_small_model(tmp_path / 'model')
    of_spatia = of_kind(model, 'spatia').backbone
    save_model(
        folder,
        config=model.config,
        vae=model.codec.vae,
        backbone=of_spatia,
        scheduler=model.scheduler,
        text=model.text,
    )
    with pytest.raises(ValueError, match="'spatia' needs 'rgb_cloud'"):
        load_model(folder)


@pytest.mark.parametrize(
    'changes', [{'references': -1}, {'preceding': 1.5}, {'decoder': 'none'}], ids=str
)
def test_invalid_history_and_decoder_are_rejected(tmp_path, changes):
    folder = save_small_model(tmp_path / 'model')
    set_in(folder / 'model.json', **changes)
    with pytest.raises(ValueError, match=r'model\.json'):
        load_model(folder)


def set_in(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tiled_codec_decodes_as_diffusers_does(tmp_path):
    folder = save_small_model(tmp_path / 'model')
    set_in(folder / 'model.json', tiling=True)
    codec, plain = load_model(folder).codec, small_vae().eval()
    plain.enable_tiling(32, 32, 24, 24)
    codec.vae.enable_tiling(32, 32, 24, 24)
    latents = torch.randn(1, CHANNELS, 2, 6, 8)
    expected = (plain.decode(latents * 0.5 + 0.1).sample.movedim(1, 2) + 1) / 2
    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match='tiling'):
        Codec(small_blocks(), tiling=True)


def test_decoder_of_other_channels_is_rejected():
    decoder = TinyDecoder(TinyDecoderConfig(channels=3, widths=(4, 4, 4, 4), patch=1))
    with pytest.raises(ValueError, match='decoder: 3 channels'):
        Codec(small_vae(), decoder=decoder)
