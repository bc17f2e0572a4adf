from __future__ import annotations

from dataclasses import replace
from functools import partial

from models import save_first_guess_model, save_small_model, small_backbone, small_blocks
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.backbone import Backbone
from mirage_model.model.checkpoint import load_model
from mirage_model.model.codec import Codec
from mirage_model.model.conditioning import readout_channels, side_input
from mirage_model.model.resampler import (
    Resampler,
    ResamplerConfig,
    UNet,
    fill,
    load_resampler,
    push_pull,
    read_first_guess,
    reproject,
    save_resampler,
)
from mirage_model.model.rollout import rollout
from mirage_model.model.sampler import sample_chunk, tiny_scheduler

CHANNELS, HEIGHT, WIDTH = 4, 6, 10


def plain_resampler(widths: tuple[int, ...] = ()) -> Resampler:
    """Return the resampler of the small block codec."""
    codec = Codec(small_blocks())
    return Resampler.of_codec(codec, widths).requires_grad_(False)


def cameras_along(steps: int, shift: float) -> Cameras:
    world_from_camera = torch.eye(4).repeat(steps, 1, 1)
    world_from_camera[:, 0, 3] = shift * torch.arange(steps)
    K = torch.tensor([[8.0, 0.0, 4.5], [0.0, 8.0, 2.5], [0.0, 0.0, 1.0]])
    return Cameras(
        K=K.expand(steps, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(steps, dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )


@pytest.fixture
def context() -> torch.Tensor:
    return torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def memory_of(context: torch.Tensor, valid: torch.Tensor) -> LatentMemory:
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, splat_size=3, dtype='float32'))
    depth = torch.full((1, HEIGHT, WIDTH), 2.0)
    memory.write(context, depth, cameras_along(1, 0.0), valid=valid[None], observed=True)
    return memory


def test_guess_at_the_context_camera_is_the_context_frame(context):
    memory = memory_of(context, torch.rand(HEIGHT, WIDTH) < 0.5)
    readout = read_first_guess(plain_resampler(), memory, cameras_along(2, 0.0), context)
    # soft edges mix the border pixels of neighbouring patches
    for latents in readout.latents:
        assert (latents - context[0]).square().mean() < 0.02


def test_mask_and_depth_of_the_readout_stay(context):
    memory = memory_of(context, torch.rand(HEIGHT, WIDTH) < 0.5)
    cameras = cameras_along(3, 0.1)
    plain = read_first_guess(None, memory, cameras, context)
    guess = read_first_guess(plain_resampler(), memory, cameras, context)
    for name in ('visible', 'observed', 'depth', 'offset', 'depth_ratio'):
        assert torch.equal(getattr(plain, name), getattr(guess, name)), name
    assert torch.equal(plain.latents, memory.readout(cameras).latents)


def test_memory_wins_over_the_context_frame(context):
    memory = memory_of(context, torch.ones(HEIGHT, WIDTH, dtype=torch.bool))
    guess = read_first_guess(plain_resampler(), memory, cameras_along(1, 0.0), context + 5)
    assert (guess.latents - context).square().mean() < 0.05


def test_empty_memory_puts_the_context_frame_far_away(context):
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, splat_size=3, dtype='float32'))
    cameras = cameras_along(2, 0.1)
    frame = plain_resampler().decode(context)
    for depth in (None, torch.full_like(frame[:, 0], 2.0)):
        shown = reproject(frame, depth, memory.readout(cameras[:1]), cameras)
        assert shown.visible.all()
        torch.testing.assert_close(shown.latents[1], frame[0])


def test_pixels_of_the_context_frame_move_by_their_own_depth(context):
    """A near square hides what is behind it and moves farther than the wall."""
    cameras = cameras_along(2, 0.5)
    frame = torch.zeros(1, 3, 4 * HEIGHT, 4 * WIDTH)
    depth = torch.full((1, 4 * HEIGHT, 4 * WIDTH), 4.0)
    near = (0, slice(9, 15), slice(21, 27))
    depth[near] = 2.0
    frame[:, :, 9:15, 21:27] = 1.0
    memory = memory_of(context, torch.ones(HEIGHT, WIDTH, dtype=torch.bool))
    shown = reproject(frame, depth, memory.readout(cameras[:1]), cameras)
    moved = shown.latents[1, 0] > 0.5
    # 32 px of focal length, 0.5 m to the right: 8 px at 2 m
    expected = torch.zeros_like(moved)
    expected[9:15, 13:19] = True
    assert torch.equal(moved & shown.visible[1], expected)
    # of the wall, which moves by 4 px, the part that the square hid is seen by nobody
    assert not shown.visible[1, 9:15, 19:21].all()


def test_unknown_depth_is_the_memorys_and_sky_is_far(context):
    cameras = cameras_along(2, 0.5)
    memory = memory_of(context, torch.ones(HEIGHT, WIDTH, dtype=torch.bool))
    frame = plain_resampler().decode(context)
    depth = torch.full_like(frame[:, 0], torch.nan)
    depth[:, :8] = torch.inf
    shown = reproject(frame, depth, memory.readout(cameras[:1]), cameras)
    assert (shown.depth[0, :8] > 100).all()
    torch.testing.assert_close(shown.depth[0, 8:], torch.full((4 * HEIGHT - 8, 4 * WIDTH), 2.0))


@pytest.mark.parametrize('filler', [push_pull, partial(push_pull, step=(1, 2))])
def test_filling_keeps_valid_cells_and_constants(filler):
    values = torch.randn(2, 3, HEIGHT, WIDTH)
    valid = torch.rand(2, HEIGHT, WIDTH) < 0.3
    valid[:, :, 0] = True
    filled = filler(values, valid)
    kept = valid[:, None].expand_as(values)
    torch.testing.assert_close(filled[kept], values[kept])
    constant = filler(torch.full_like(values, 3.0), valid)
    torch.testing.assert_close(constant, torch.full_like(values, 3.0), rtol=1e-4, atol=1e-4)
    assert (filler(torch.zeros_like(values), torch.zeros_like(valid)) == 0).all()


def test_fill_keeps_known_pixels_and_constants():
    image, known = torch.rand(2, 3, 24, 40), torch.rand(2, 24, 40) < 0.3
    kept = known[:, None].expand_as(image)
    assert torch.equal(fill(image, known)[kept], image[kept])
    constant = torch.full_like(image, 0.4)
    torch.testing.assert_close(fill(constant, known), constant, rtol=0, atol=3 / 255)


def test_a_camera_that_sees_nothing_gets_the_mean_colour():
    resampler = plain_resampler()
    codec_mean = resampler.decode(torch.zeros(1, CHANNELS, HEIGHT, WIDTH))
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, splat_size=3, dtype='float32'))
    cameras = cameras_along(2, 0.0)
    turned = cameras.world_from_camera.clone()
    turned[1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    cameras = replace(cameras, world_from_camera=turned)
    guess = read_first_guess(resampler, memory, cameras, torch.ones(1, CHANNELS, HEIGHT, WIDTH))
    torch.testing.assert_close(
        resampler.decode(guess.latents[1:]), codec_mean, atol=1e-4, rtol=1e-3
    )


def test_rows_are_filled_on_their_own():
    values = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 1, 6, 10)
    valid = torch.zeros(1, 6, 10, dtype=torch.bool)
    valid[:, :, 7] = True
    torch.testing.assert_close(push_pull(values, valid, step=(1, 2)), values.contiguous())


def test_untrained_convolutions_change_nothing(context):
    memory = memory_of(context, torch.rand(HEIGHT, WIDTH) < 0.5)
    cameras = cameras_along(3, 0.2)
    plain = read_first_guess(plain_resampler(), memory, cameras, context)
    convolved = read_first_guess(plain_resampler(widths=(8, 8)), memory, cameras, context)
    torch.testing.assert_close(convolved.latents, plain.latents)


def test_linear_maps_equal_the_codec():
    codec, resampler = Codec(small_blocks()), plain_resampler()
    latents = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    image = torch.nn.functional.pixel_shuffle(resampler.to_patch(latents), 4)
    torch.testing.assert_close(image, codec.decode_images(latents))
    patches = torch.nn.functional.pixel_unshuffle(image, 4)
    torch.testing.assert_close(resampler.to_latents(patches), codec.encode_images(image))


@pytest.mark.parametrize('size', [(6, 10), (5, 9), (1, 3)])
def test_correction_takes_grids_of_any_size(size):
    network = UNet(3, (4, 6, 8), 2)
    torch.nn.init.ones_(network.last.bias)
    assert torch.equal(network(torch.rand(2, 3, *size)), torch.ones(2, 2, *size))


def test_resampler_round_trips(tmp_path):
    resampler = Resampler(ResamplerConfig(channels=CHANNELS, widths=(8, 16)))
    save_resampler(tmp_path, resampler)
    loaded = load_resampler(tmp_path)
    for (name, a), b in zip(resampler.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(a.half().float(), b), name
    (tmp_path / 'config.json').write_text('{"channels": 0, "widths": []}')
    with pytest.raises(ValueError, match=r'config\.json: not a valid resampler'):
        load_resampler(tmp_path)
    (tmp_path / 'config.json').write_text('{"channels": 5, "widths": [8, 16]}')
    with pytest.raises(ValueError, match=r'model\.safetensors: does not fit'):
        load_resampler(tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match=r'model\.safetensors: the file is missing'):
        load_resampler(tmp_path)


@pytest.mark.parametrize('steps', [1, 2, 4])
def test_untrained_backbone_samples_the_first_guess(context, steps):
    plain = small_backbone()
    backbone = Backbone(plain.wan, plain.side_branch, prediction='first_guess')
    torch.nn.init.zeros_(backbone.wan.proj_out.weight)
    torch.nn.init.zeros_(backbone.wan.proj_out.bias)
    memory = memory_of(context, torch.rand(HEIGHT, WIDTH) < 0.5)
    cameras = cameras_along(3, 0.1)
    guess = read_first_guess(plain_resampler(), memory, cameras, context)
    codec = Codec(small_blocks())
    side = side_input('mirage', readout_channels(guess), cameras, codec=codec)
    with torch.no_grad():
        for projection in backbone.side_branch.proj_out:
            projection.weight.normal_()
        latents = sample_chunk(
            backbone,
            tiny_scheduler(),
            context=context[:, :, None],
            latent_frames=3,
            side=side,
            text=torch.randn(1, 1, 8),
            steps=steps,
            generator=torch.Generator().manual_seed(1),
        )
    # schedulers round timesteps to whole numbers
    torch.testing.assert_close(
        latents[0, :, 1:].movedim(1, 0), guess.latents[1:], atol=0.02, rtol=0
    )


def rollout_frames(model) -> torch.Tensor:
    height, width = model.config.height, model.config.width
    steps = model.new_frames + 1
    like = cameras_along(steps, 0.1)
    K = torch.tensor([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])
    cameras = replace(like, K=K.expand(steps, 3, 3), height=height, width=width)
    memory = LatentMemory(MemoryConfig(channels=model.codec.channels, splat_size=3))
    chunks = rollout(
        model,
        memory,
        torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)),
        cameras[:1],
        cameras[1:],
        steps=1,
        generator=torch.Generator().manual_seed(0),
    )
    return torch.cat([chunk.frames for chunk in chunks])


def test_first_guess_model_runs_without_transformer(tmp_path):
    model = load_model(save_first_guess_model(tmp_path / 'model'))
    assert model.backbone is None and model.scheduler is None
    assert rollout_frames(model).shape == (model.new_frames, 3, 32, 48)


def test_first_guess_without_resampler_is_rejected(tmp_path):
    folder = save_first_guess_model(tmp_path / 'model')
    for path in (folder / 'resampler').iterdir():
        path.unlink()
    (folder / 'resampler').rmdir()
    with pytest.raises(ValueError, match='resampler'):
        load_model(folder)


def test_velocity_model_without_resampler_is_unchanged(tmp_path):
    model = load_model(save_small_model(tmp_path / 'model'))
    assert model.resampler is None and model.backbone.prediction == 'velocity'
