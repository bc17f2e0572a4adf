"""Tests of all memories against the protocol, and of each baseline."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import scenes
import torch
from torch.nn import functional as F

from mirage_model.camera import Cameras, project, unproject
from mirage_model.memory import Encoder, Memory, Pixels
from mirage_model.memory.baselines.pixels import at_pixels, off_depth_edges
from mirage_model.memory.baselines.retrieved_views import MAX_VIEWS, RetrievedViews, greedy_cover
from mirage_model.memory.baselines.rgb_cloud import RgbCloud
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import MEMORIES, create_memory

STRIDE, CHANNELS = 4, 3
HEIGHT, WIDTH = scenes.HEIGHT * STRIDE, scenes.WIDTH * STRIDE
CONFIG = MemoryConfig(channels=CHANNELS, dtype='float32')
HOLDING = sorted(set(MEMORIES) - {'none'})
GROWN_BY_RULE = ['latent', 'lifted_features', 'rgb_cloud']
"""Memories that protect observations from imagination and clear free space."""


class MeanColours:
    """Encoder whose latents are the mean colours of the cells."""

    channels, spatial_stride = CHANNELS, STRIDE

    def encode_images(self, frames: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(frames, STRIDE)


def memory_of(name: str) -> Memory:
    return create_memory(name, CONFIG, MeanColours())


def picture(seed: int = 0, n: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, HEIGHT, WIDTH), generator=generator) / 255


def at(*translation, times=None) -> Cameras:
    return scenes.camera_row([scenes.transform(translation=translation)], times)


def write(
    memory: Memory,
    camera: Cameras,
    depth: float | torch.Tensor,
    *,
    observed: bool = True,
    frames: torch.Tensor | None = None,
) -> int:
    """Write a wall, or pixel depth that is constant within each cell."""
    n = len(camera)
    frames = picture(n=n) if frames is None else frames
    if not isinstance(depth, torch.Tensor):
        depth = torch.full((n, HEIGHT, WIDTH), float(depth))
    cells = depth[:, ::STRIDE, ::STRIDE]
    return memory.write(
        MeanColours().encode_images(frames),
        cells,
        camera,
        valid=cells.isfinite() & (cells > 0),
        observed=observed,
        pixels=Pixels(frames=frames, depth=depth),
    )


def test_mean_colours_is_an_encoder():
    assert isinstance(MeanColours(), Encoder)


@pytest.mark.parametrize('name', MEMORIES)
def test_empty_memory_reads_as_zeros(name):
    memory = memory_of(name)
    assert isinstance(memory, Memory)
    assert len(memory) == 0 and memory.nbytes == 0
    for latents in (True, False):
        readout = memory.readout(at(0, 0, 0), latents=latents)
        channels = CHANNELS if latents else 0
        assert readout.latents.shape == (1, channels, scenes.HEIGHT, scenes.WIDTH)
        assert readout.offset.shape == (1, 2, scenes.HEIGHT, scenes.WIDTH)
        assert all(values.eq(0).all() for values in vars(readout).values())


@pytest.mark.parametrize('name', HOLDING)
def test_wall_reads_back(name):
    memory = memory_of(name)
    camera = at(0, 0, 0, times=[1.7e9 + 0.125])
    assert write(memory, camera, 4) == len(memory) > 0
    assert memory.nbytes > len(memory) and memory.index_nbytes > 0
    readout = memory.readout(at(0, 0, 0, times=[1.7e9 + 2.25]))
    assert readout.visible.all() and readout.observed.all()
    torch.testing.assert_close(readout.depth, torch.full_like(readout.depth, 4.0))
    assert readout.age.eq(2.125).all()
    assert readout.depth_ratio.abs().max() < 1e-3
    if name != 'lifted_features':  # the mean of its neighbours is not what was written
        written = MeanColours().encode_images(picture())
        torch.testing.assert_close(readout.latents, written, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', HOLDING)
@settings(max_examples=15, deadline=None)
@given(cameras=scenes.cameras(max_cameras=2), seed=st.integers(0, 99), observed=st.booleans())
def test_readout_without_latents_is_otherwise_equal(name, cameras, seed, observed):
    generator = torch.Generator().manual_seed(seed)
    size = (len(cameras), scenes.HEIGHT, scenes.WIDTH)
    cells = torch.rand(size, generator=generator) * 4 + 0.5
    cells[torch.rand(size, generator=generator) < 0.2] = math.nan
    depth = cells.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    first, second = memory_of(name), memory_of(name)
    for memory in (first, second):
        write(memory, cameras, depth, observed=observed)
    readout, again = first.readout(cameras), second.readout(cameras)
    bare = first.readout(cameras, latents=False)
    for field, value in vars(readout).items():
        assert torch.equal(value, getattr(again, field))  # the same twice
        assert field == 'latents' or torch.equal(value, getattr(bare, field))
        unseen = ~readout.visible
        assert value[unseen].eq(0).all() if value.ndim == 3 else True
    assert not readout.latents.movedim(1, -1)[~readout.visible].any()
    assert not (readout.observed & ~readout.visible).any()
    assert torch.equal(readout.observed, readout.visible & observed)


@pytest.mark.parametrize('name', HOLDING)
def test_forks_are_independent(name):
    trunk = memory_of(name)
    write(trunk, at(0, 0, 0), 4)
    held, before = len(trunk), trunk.readout(at(9, 0, 0))
    branch = trunk.fork()
    write(branch, at(9, 0, 0), 2, observed=False)
    assert len(trunk) == held < len(branch)
    assert torch.equal(trunk.readout(at(9, 0, 0)).visible, before.visible)
    assert branch.readout(at(9, 0, 0)).visible.all()
    write(trunk, at(-9, 0, 0), 2)
    assert not branch.readout(at(-9, 0, 0)).visible.all()


@pytest.mark.parametrize('name', HOLDING)
def test_pixels_without_depth_are_not_written(name):
    memory = memory_of(name)
    depth = torch.full((1, HEIGHT, WIDTH), 4.0)
    depth[:, :, : WIDTH // 2] = torch.tensor([math.nan, math.inf, 0.0, -1.0]).repeat(3)
    write(memory, at(0, 0, 0), depth)
    visible = memory.readout(at(0, 0, 0)).visible
    assert visible[..., 3:].all() and not visible[..., :3].any()


@pytest.mark.parametrize('name', GROWN_BY_RULE)
def test_imagination_changes_no_visible_points(name):
    memory = memory_of(name)
    camera = at(0, 0, 0)
    write(memory, camera, 4)
    before = memory.readout(camera)
    for depth in (1, 3, 4, 4.1, 9):
        assert write(memory, camera, depth, observed=False, frames=picture(1)) == 0
    assert torch.equal(memory.readout(camera).latents, before.latents)
    imagined = memory_of(name)
    write(imagined, camera, 4, observed=False)
    before = imagined.readout(camera)
    assert write(imagined, camera, 4, observed=False, frames=picture(1)) == 0
    assert torch.equal(imagined.readout(camera).latents, before.latents)
    assert write(imagined, camera, 4, observed=True, frames=picture(1)) > 0
    assert imagined.readout(camera).observed.all()


@pytest.mark.parametrize('name', GROWN_BY_RULE)
def test_observation_removes_points_in_free_space(name):
    memory = memory_of(name)
    camera = at(0, 0, 0)
    write(memory, camera, 2)
    write(memory, camera, 6, frames=picture(1))
    depth = memory.readout(camera).depth
    assert depth[:, 1:-1, 1:-1].gt(5).all()


@pytest.mark.parametrize('name', ['rgb_cloud', 'lifted_features'])
def test_pixel_memories_raise_for_invalid_pixels(name):
    memory = memory_of(name)
    cells = torch.ones(1, scenes.HEIGHT, scenes.WIDTH)
    latents = torch.zeros(1, CHANNELS, *cells.shape[1:])
    arguments = {'valid': cells > 0, 'observed': True}
    with pytest.raises(ValueError, match='pixels: missing'):
        memory.write(latents, cells, at(0, 0, 0), **arguments)
    small = Pixels(frames=picture()[..., :-4], depth=torch.ones(1, HEIGHT, WIDTH - 4))
    with pytest.raises(ValueError, match='expected 1 of 16x24'):
        memory.write(latents, cells, at(0, 0, 0), **arguments, pixels=small)
    broken = picture()
    broken[0, 1, 5, 7] = math.nan
    with pytest.raises(ValueError, match=r'pixels .*\[0, 5, 7\]: not finite'):
        write(memory, at(0, 0, 0), 4, frames=broken)
    assert len(memory) == 0


@pytest.mark.parametrize('name', ['retrieved_views', 'overlapping_views', 'lifted_features'])
def test_latent_memories_raise_for_invalid_latents(name):
    memory = memory_of(name)
    cells = torch.ones(1, scenes.HEIGHT, scenes.WIDTH)
    pixels = Pixels(frames=picture(), depth=torch.ones(1, HEIGHT, WIDTH))
    arguments = {'valid': cells > 0, 'observed': True, 'pixels': pixels}
    for latents in (None, torch.zeros(1, CHANNELS + 1, *cells.shape[1:])):
        with pytest.raises(ValueError):
            memory.write(latents, cells, at(0, 0, 0), **arguments)
    assert len(memory) == 0 and not memory.readout(at(0, 0, 0)).visible.any()


def test_unknown_name_or_wrong_channels_raise():
    with pytest.raises(ValueError, match="'latents' is unknown.*lifted_features"):
        create_memory('latents', CONFIG, MeanColours())
    with pytest.raises(ValueError, match='memory has 5, the codec has 3'):
        create_memory('latent', MemoryConfig(channels=5), MeanColours())


# --- the RGB cloud ---------------------------------------------------------------------------


def cloud_of(**changes) -> RgbCloud:
    config = MemoryConfig(**{'channels': CHANNELS} | changes)
    return RgbCloud(config, MeanColours())


@settings(max_examples=20, deadline=None)
@given(st.integers(-6, 6), st.integers(-6, 6), st.integers(0, 99))
def test_render_shifts_a_wall_by_whole_pixels(right, down, seed):
    cloud = cloud_of()
    frames, depth, focal = picture(seed), 4.0, 4.0 * STRIDE
    write(cloud, at(0, 0, 0), depth, frames=frames)
    camera = at(right * depth / focal, down * depth / focal, 0)
    pixel, _ = cloud.render(at_pixels(camera, STRIDE))
    seen = cloud.colours(pixel)[0]
    moved = torch.full((3, HEIGHT, WIDTH), -1.0)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if 0 <= y + down < HEIGHT and 0 <= x + right < WIDTH:
                moved[:, y, x] = frames[0, :, y + down, x + right]
    covered = pixel[0] >= 0
    assert torch.equal(covered, moved[0] >= 0)
    colours = (moved * 255).round().byte()
    assert torch.equal(seen[:, covered], colours[:, covered])
    assert seen[:, ~covered].eq(128).all()


def test_point_has_23_bytes_and_rewriting_adds_none():
    cloud = cloud_of()
    assert write(cloud, at(0, 0, 0), 4) == HEIGHT * WIDTH
    assert cloud.nbytes == 23 * HEIGHT * WIDTH
    write(cloud, at(0, 0, 0), 4)
    assert len(cloud) == HEIGHT * WIDTH


def test_cell_is_visible_if_half_of_its_pixels_are():
    cloud = cloud_of()
    depth = torch.full((1, HEIGHT, WIDTH), math.nan)
    depth[:, :2] = 4.0  # half of the first row of cells
    depth[:, STRIDE : STRIDE + 1] = 4.0  # a quarter of the second
    write(cloud, at(0, 0, 0), depth)
    readout = cloud.readout(at(0, 0, 0))
    assert readout.visible[:, 0].all() and not readout.visible[:, 1:].any()
    closer = cloud.readout(at(0, 0, 2))
    ratio = closer.depth_ratio[closer.visible]
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.log(0.5)))


def test_splats_close_gaps_up_to_their_size():
    cloud = cloud_of()
    write(cloud, at(0, 0, 0), 4)
    assert (cloud.render(at_pixels(at(0, 0, 2.5), STRIDE))[0] >= 0).all()
    assert not (cloud.render(at_pixels(at(0, 0, 3.5), STRIDE))[0] >= 0).all()


def test_imagination_refines_only_imagined_points():
    for observed in (True, False):
        cloud = cloud_of()
        write(cloud, at(0, 0, 0), 4, observed=observed)
        added = write(cloud, at(0, 0, 2.5), 1.5, observed=False, frames=picture(1))
        assert (added == 0) == observed


def test_repeated_cameras_of_a_write_count_once():
    cloud = cloud_of()
    camera = scenes.camera_row([scenes.transform()] * 2)
    assert write(cloud, camera, 4, observed=False) == len(cloud) == HEIGHT * WIDTH


def test_empty_renderings_are_not_encoded():
    encoded = []

    class Counting(MeanColours):
        def encode_images(self, frames: torch.Tensor) -> torch.Tensor:
            encoded.append(len(frames))
            return super().encode_images(frames)

    cloud = RgbCloud(CONFIG, Counting())
    write(cloud, at(0, 0, 0), 4)
    away = scenes.camera_row([scenes.transform(), scenes.transform((0, math.pi, 0))])
    readout = cloud.readout(away)
    assert encoded == [1] and readout.visible[0].all() and not readout.visible[1].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_pixels_at_depth_edges_are_excluded(seed):
    rng = np.random.default_rng(seed)
    depth = torch.full((1, 12, 14), 3.0)
    top, left = rng.integers(3, 6, 2)
    bottom, right = rng.integers(top + 3, 10), rng.integers(left + 3, 12)
    depth[:, top:bottom, left:right] = float(rng.choice([1.0, 5.0]))
    depth[:, 0, 0] = rng.choice([math.nan, math.inf, 0.0, -1.0])
    take = off_depth_edges(depth)[0]
    for y in range(12):
        for x in range(14):
            own = float(depth[0, y, x])
            near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            near = [float(depth[0, v, u]) for v, u in near if 0 <= v < 12 and 0 <= u < 14]
            apart = any(value != own and 0 < value < math.inf for value in near)
            assert take[y, x] == (0 < own < math.inf and not apart)


# --- lifted features -------------------------------------------------------------------------


def test_lifted_features_hold_a_point_per_pixel():
    memory = memory_of('lifted_features')
    assert write(memory, at(0, 0, 0), 4) == HEIGHT * WIDTH
    smooth = torch.linspace(0, 1, WIDTH).expand(1, 3, HEIGHT, WIDTH).contiguous()
    memory = memory_of('lifted_features')
    write(memory, at(0, 0, 0), 4, frames=smooth)
    latents = memory.readout(at(0, 0, 0)).latents
    step = float(smooth[0, 0, 0, 1])
    written = MeanColours().encode_images(smooth)
    assert (latents - written)[..., 1:-1].abs().max() <= STRIDE / 2 * step


# --- retrieved views -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 9999))
def test_greedy_cover_equals_the_oracle(views, items, seed):
    rng = np.random.default_rng(seed)
    cover = rng.random((views, items)) < 0.4
    weight = rng.integers(0, 4, items).astype(np.float32)
    expected, shown = [], set()
    while len(expected) < 3:
        gains = [
            sum(weight[j] for j in range(items) if cover[v, j] and j not in shown)
            for v in range(views)
        ]
        best = max(range(views), key=lambda v: (gains[v], v))
        if gains[best] == 0:
            break
        expected.append(best)
        shown |= {j for j in range(items) if cover[best, j]}
    assert greedy_cover(cover, weight, 3) == expected


@pytest.mark.parametrize('index', ['surfels', 'overlap'])
def test_views_of_the_same_wall_are_retrieved(index):
    memory = RetrievedViews(CONFIG, index=index)
    for k in range(4):  # the four walls of a room, in views that do not overlap
        camera = scenes.camera_row([scenes.transform((0, k * math.pi / 2, 0))], [float(k)])
        write(memory, camera, 4, frames=picture(k))
    for k in range(4):
        camera = scenes.camera_row([scenes.transform((0, k * math.pi / 2, 0))])
        assert memory.retrieve(camera) == [k]
        written = MeanColours().encode_images(picture(k))
        torch.testing.assert_close(memory.readout(camera).latents, written, rtol=0, atol=1e-5)
        corner = scenes.camera_row([scenes.transform((0, (k + 0.5) * math.pi / 2, 0))])
        assert set(memory.retrieve(corner)) == {k, (k + 1) % 4}


def test_redundant_views_are_not_retrieved():
    memory = RetrievedViews(CONFIG, index='surfels')
    for k in range(8):
        write(memory, at(3 * k, 0, 0), 4, frames=picture(k))
    wide = scenes.camera_row([scenes.transform(translation=(10, 0, -20))])
    assert len(memory.retrieve(wide)) == MAX_VIEWS
    for k in range(3):
        write(memory, at(0, 50, 0), 4, frames=picture(k))
    assert memory.retrieve(at(0, 50, 0)) == [10]  # the latest of three alike


def test_surfels_respect_occlusion_and_overlap_does_not():
    """The near wall of two rooms in a row hides the far room from the near camera."""
    surfels, overlap = (RetrievedViews(CONFIG, index=i) for i in ('surfels', 'overlap'))
    for memory in (surfels, overlap):
        write(memory, at(0, 0, 0), 2)
        write(memory, at(0, 0, 3), 2, frames=picture(1))
    near = at(0, 0, 0)
    assert surfels.retrieve(near) == [0]
    assert overlap.retrieve(near) == [0]
    behind = at(0, 0, 2.5)
    assert surfels.retrieve(behind) == [1]
    assert overlap.retrieve(behind) == [0]  # its field of view holds all, were there no wall


@settings(max_examples=15, deadline=None)
@given(scenes.cameras(max_cameras=1), st.integers(0, 99))
def test_nearest_point_of_several_views_wins(camera, seed):
    """The depth equals that of a loop over all points of the retrieved views."""
    rng = np.random.default_rng(seed)
    memory = RetrievedViews(CONFIG, index='surfels')
    cameras, depths = [], []
    for k in range(3):
        cameras.append(at(*rng.uniform(-0.5, 0.5, 3)))
        depths.append(torch.full((1, HEIGHT, WIDTH), float(rng.uniform(1, 4))))
        write(memory, cameras[-1], depths[-1], frames=picture(k))
    expected = torch.full((scenes.HEIGHT, scenes.WIDTH), math.inf)
    for k in memory.retrieve(camera):
        points = unproject(depths[k][:, ::STRIDE, ::STRIDE], cameras[k]).view(1, -1, 3)
        pixels, along = project(points, camera)
        for (x, y), z in zip(pixels[0].tolist(), along[0].tolist()):
            row, column = math.floor(y + 0.5), math.floor(x + 0.5)
            inside = 0 <= row < scenes.HEIGHT and 0 <= column < scenes.WIDTH
            if z > CONFIG.near and inside:
                expected[row, column] = min(expected[row, column], z)
    readout = memory.readout(camera)
    close = torch.isclose(torch.where(readout.visible[0], readout.depth[0], math.inf), expected)
    assert close.float().mean() > 0.95  # rounding may put a point on the border one cell further
