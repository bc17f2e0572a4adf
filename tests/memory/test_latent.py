"""Tests of the latent memory's guarantees on small memories."""

from __future__ import annotations

from dataclasses import replace
import gc
import math
import shutil
from threading import Event, Thread
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
import oracle
import pytest
import scenes
import torch

from mirage_model.camera import Cameras
from mirage_model.evaluation.benchmarks import memory_speed
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.memory.points import MAX_SERIAL
from mirage_model.memory.visibility import CameraArrays, in_free_space

CHANNELS = 3
CONFIG = MemoryConfig(channels=CHANNELS, dtype='float32')


def picture(n=1, seed=0, height=scenes.HEIGHT, width=scenes.WIDTH):
    return torch.randn(n, CHANNELS, height, width, generator=torch.Generator().manual_seed(seed))


def wall(depth, n=1, height=scenes.HEIGHT, width=scenes.WIDTH):
    return torch.full((n, height, width), float(depth))


def everywhere(n=1, height=scenes.HEIGHT, width=scenes.WIDTH):
    return torch.ones(n, height, width, dtype=torch.bool)


def at(*translation) -> Cameras:
    return scenes.camera_row([scenes.transform(translation=translation)])


@settings(max_examples=25, deadline=None)
@given(scenes.cameras(max_cameras=1), st.integers(0, 1000), st.sampled_from([1, 3, 5]))
def test_written_cells_read_back_exactly(camera, seed, splat_size):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(1, scenes.HEIGHT, scenes.WIDTH, generator=generator) * 20 + 0.1
    valid = torch.rand(depth.shape, generator=generator) < 0.7
    depth[~valid & (depth > 10)] = math.nan
    latents = picture(seed=seed)
    for dtype in ('float32', 'bfloat16'):
        config = MemoryConfig(channels=CHANNELS, splat_size=splat_size, dtype=dtype)
        memory = LatentMemory(config)
        assert memory.write(latents, depth, camera, valid=valid, observed=True) == valid.sum()
        readout = memory.readout(camera)
        # a small cell within a wide footprint of a nearer one is covered too
        assert readout.visible[valid].all()
        assert readout.observed[valid].all()
        if splat_size == 1 or camera.K[0, 0, 0] == camera.K[0, 1, 1]:
            assert torch.equal(readout.visible, valid)
        held = latents.to(getattr(torch, dtype)).float()
        assert torch.equal(readout.latents.movedim(1, -1)[valid], held.movedim(1, -1)[valid])
        torch.testing.assert_close(readout.depth[valid], depth[valid], rtol=1e-5, atol=1e-5)
        assert readout.age[valid].eq(0).all()
        assert readout.offset.abs().max() < 1e-3
        assert readout.depth_ratio.abs().max() < 1e-3
        unseen = ~readout.visible
        assert readout.latents.movedim(1, -1)[unseen].eq(0).all()
        assert readout.depth[unseen].eq(0).all()


def test_empty_memory_reads_as_zeros():
    readout = LatentMemory(CONFIG).readout(at(0, 0, 0))
    assert readout.latents.shape == (1, CHANNELS, scenes.HEIGHT, scenes.WIDTH)
    assert readout.offset.shape == (1, 2, scenes.HEIGHT, scenes.WIDTH)
    assert not readout.visible.any() and not readout.observed.any()
    assert all(not values.isnan().any() for values in vars(readout).values())


def test_readout_gives_depth_ratio_age_and_offset():
    memory = LatentMemory(CONFIG)
    memory.write(picture(), wall(4), at(0, 0, 0), valid=everywhere(), observed=True)
    camera = scenes.camera_row([scenes.transform(translation=(0.125, 0, 2))], [7.5])
    readout = memory.readout(camera)
    seen = readout.visible
    # half as far, so at twice their distance from the middle, and 0.25 cells to the left
    assert seen.sum() == 6
    assert readout.depth[seen].eq(2).all() and readout.age[seen].eq(7.5).all()
    torch.testing.assert_close(readout.depth_ratio[seen], torch.full((6,), math.log(0.5)))
    x = 2 * (torch.arange(scenes.WIDTH) - 2.5) + 2.5 - 0.25
    cell = torch.floor(x + 0.5)
    offsets = {float(value) for value, at in zip(x - cell, cell) if 0 <= at < scenes.WIDTH}
    assert set(readout.offset[:, 0][seen].tolist()) == offsets


def test_epoch_times_keep_their_fractions():
    memory = LatentMemory(CONFIG)
    pose = [scenes.transform()]
    start = 1_763_822_160.125
    memory.write(
        picture(), wall(4), scenes.camera_row(pose, [start]), valid=everywhere(), observed=True
    )
    readout = memory.readout(scenes.camera_row(pose, [start + 86_400.125]))
    assert readout.age.eq(86_400.125).all()


def test_imagination_never_occludes_observations():
    memory = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    memory.write(picture(), wall(4), camera, valid=everywhere(), observed=True)
    for depth in (1, 3, 3.9, 4, 4.1, 9):
        memory.write(picture(seed=1), wall(depth), camera, valid=everywhere(), observed=False)
        readout = memory.readout(camera)
        assert readout.observed.all()
        assert torch.equal(readout.latents, picture())


def test_imagination_fills_unobserved_cells():
    memory = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    left = everywhere()
    left[..., 3:] = False
    memory.write(picture(), wall(4), camera, valid=left, observed=True)
    added = memory.write(picture(seed=1), wall(2), camera, valid=everywhere(), observed=False)
    assert added == 12
    readout = memory.readout(camera)
    assert readout.visible.all() and torch.equal(readout.observed, left)


def test_observation_occludes_imagination():
    memory = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    for depth in (5, 4.1, 4, 3.9):
        memory.write(picture(seed=1), wall(depth), camera, valid=everywhere(), observed=False)
    memory.write(picture(), wall(4), camera, valid=everywhere(), observed=True)
    assert memory.readout(camera).observed.all()


@pytest.mark.parametrize('was_observed', [True, False])
def test_observation_removes_points_in_free_space(was_observed):
    memory = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    memory.write(picture(), wall(2), camera, valid=everywhere(), observed=was_observed)
    added = memory.write(picture(seed=1), wall(6), camera, valid=everywhere(), observed=True)
    inner = torch.zeros_like(everywhere())
    inner[:, 1:-1, 1:-1] = True
    readout = memory.readout(camera)
    assert added == 24 and len(memory) == 24 + (~inner).sum()
    assert torch.equal(readout.depth > 5, inner)


def test_missing_depth_clears_no_free_space():
    memory = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    memory.write(picture(), wall(2), camera, valid=everywhere(), observed=True)
    for hole in (math.nan, math.inf, 0.0, -1.0):
        memory.write(picture(), wall(hole), camera, valid=~everywhere(), observed=True)
        assert len(memory) == 24


@settings(max_examples=40, deadline=None)
@given(
    scenes.points(),
    scenes.cameras(),
    scenes.rules,
    st.lists(
        st.sampled_from([0.5, 1.0, 4.0, 50.0, math.nan, math.inf, 0.0]), min_size=72, max_size=72
    ),
)
def test_in_free_space_equals_the_oracle(points, cameras, rule, depths):
    depth = torch.tensor(depths)[: len(cameras) * 24].view(-1, scenes.HEIGHT, scenes.WIDTH)
    views = CameraArrays.from_cameras(cameras)
    gone = in_free_space(points, depth, views, rule)
    assert torch.equal(gone, oracle.in_free_space(points, depth, views, rule))


def test_forks_are_independent():
    trunk = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    left = everywhere()
    left[..., 3:] = False
    trunk.write(picture(), wall(4), camera, valid=left, observed=True)
    branch = trunk.fork()
    branch.write(picture(seed=1), wall(4), camera, valid=~left, observed=False)
    assert len(trunk) == 12 and len(branch) == 24
    trunk.write(picture(seed=2), wall(4), camera, valid=~left, observed=True)
    assert branch.readout(camera).visible.all()
    assert torch.equal(branch.readout(camera).observed, left)
    assert trunk.readout(camera).observed.all()


def test_invalid_writes_raise_with_their_position():
    memory = LatentMemory(CONFIG)
    camera = at(0, 0, 0)
    depth = wall(4)
    depth[0, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r'depth.*\[0, 2, 3\].*not finite and positive'):
        memory.write(picture(), depth, camera, valid=everywhere(), observed=True)
    latents = picture()
    latents[0, 1, 3, 4] = math.inf
    with pytest.raises(ValueError, match=r'\[0, 3, 4\].*not finite'):
        memory.write(latents, wall(4), camera, valid=everywhere(), observed=True)
    with pytest.raises(ValueError, match=r'shape .* expected \(1, 3, 4, 6\)'):
        memory.write(latents[:, :2], wall(4), camera, valid=everywhere(), observed=True)
    assert len(memory) == 0


def test_cells_beyond_max_depth_are_not_written():
    memory, depth = LatentMemory(CONFIG), wall(4)
    depth[0, 0] = torch.tensor([1e6, 1e12, 3e38, 999_999.0, 4, 4])
    assert memory.write(picture(), depth, at(0, 0, 0), valid=everywhere(), observed=True) == 21
    assert memory.readout(at(0, 0, 0)).visible[0, 0].tolist() == [False] * 3 + [True] * 3


def test_free_space_is_cleared_beyond_the_far_plane():
    config = replace(CONFIG, far=3.0)
    memory, loops = LatentMemory(config), oracle.LoopMemory(config)
    held = []
    for depth, observed in ((3.5, False), (8.0, True)):
        write = {
            'latents': picture(),
            'depth': wall(depth),
            'cameras': at(0, 0, 0),
            'valid': everywhere(),
            'observed': observed,
        }
        memory.write(**write)
        loops.write(**write, confidence=torch.ones_like(write['depth']))
        held.append(len(memory))
        assert len(memory) == len(loops.held)
    assert held[1] < 2 * held[0]


@pytest.mark.parametrize('wrong', [math.nan, -0.1, 1.1, math.inf])
def test_confidence_out_of_range_raises(wrong):
    confidence = wall(1)
    confidence[0, 1, 2] = wrong
    memory = LatentMemory(CONFIG)

    def write(valid):
        camera = at(0, 0, 0)
        return memory.write(
            picture(), wall(4), camera, valid=valid, observed=True, confidence=confidence
        )

    with pytest.raises(ValueError, match=r'confidence.*\[0, 1, 2\]'):
        write(everywhere())
    assert write(confidence == 1) == 23


def test_voxel_keeps_the_points_of_the_last_camera():
    memory, camera = LatentMemory(replace(CONFIG, voxel=1.0)), at(0, 0, 0)
    for seed, confidence in enumerate((0.8, 0.5, 0.9)):
        memory.write(
            picture(seed=seed),
            wall(4),
            camera,
            valid=everywhere(),
            observed=True,
            confidence=wall(confidence),
        )
        points = memory._store.points()
        assert len(points) == 24
        assert torch.equal(memory.readout(camera).latents, picture(seed=seed))
        assert set(points.confidence) == {round(confidence * 255)}


def test_nbytes_counts_the_arrays_of_blocks():
    memory = LatentMemory(MemoryConfig(channels=48))
    latents = torch.zeros(1, 48, scenes.HEIGHT, scenes.WIDTH)
    memory.write(latents, wall(4), at(0, 0, 0), valid=everywhere(), observed=True)
    arrays = [values for block in memory._store.blocks() for values in vars(block).values()]
    assert memory.nbytes == sum(values.nbytes for values in arrays) == 24 * 125
    assert memory.resident_nbytes == memory.nbytes and memory.index_nbytes > 0


@pytest.mark.parametrize('voxel', [0.0, 1.5])
def test_index_nbytes_matches_traced_memory(voxel):
    memory = LatentMemory(MemoryConfig(channels=8, voxel=voxel))
    cameras, depth = next(memory_speed.chunks(1))
    latents, valid = torch.zeros(len(cameras), 8, *depth.shape[1:]), depth > 0
    LatentMemory(memory.config).write(latents, depth, cameras, valid=valid, observed=True)
    tracemalloc.start()
    memory.write(latents, depth, cameras, valid=valid, observed=True)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - memory.nbytes
    tracemalloc.stop()
    assert len(memory) > 10_000 and 0.8 < memory.index_nbytes / taken < 1.2


def test_index_nbytes_includes_coverage_counts():
    memory = LatentMemory(CONFIG)
    memory.write(picture(), wall(4), at(0, 0, 0), valid=everywhere(), observed=True)
    directory = memory.index_nbytes
    memory.coverage(at(0, 0, 0))
    assert memory.index_nbytes > directory + 64 * 512 * 4 * 4


@pytest.mark.parametrize(
    'wrong', [{'channels': 0}, {'splat_size': 2}, {'tolerance': 1.0}, {'near': 0.0}, {'far': 0.01}]
)
def test_invalid_config_raises(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MemoryConfig(**{'channels': 3} | wrong)


@pytest.mark.parametrize('bounded', [False, True])
def test_concurrent_reads_see_whole_writes(tmp_path, bounded):
    """Two threads read two cameras that share no block, while a third writes both at once."""
    bounds = {'capacity': 60, 'resident': 30, 'folder': str(tmp_path)} if bounded else {}
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, dtype='float32', **bounds))
    cameras = scenes.camera_row([scenes.transform(), scenes.transform((0, math.pi, 0))])
    failures, done = [], Event()

    def write(value):
        latents = torch.full((2, CHANNELS, scenes.HEIGHT, scenes.WIDTH), float(value))
        memory.write(latents, wall(4, 2), cameras, valid=everywhere(2), observed=True)

    def read():
        while not done.is_set():
            readout = memory.readout(cameras)
            if not readout.visible.all() or len(readout.latents.unique()) != 1:
                failures.append(readout)

    write(0)
    readers = [Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for value in range(1, 60):
        write(value)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert memory.readout(cameras).latents.eq(59).all()


def test_failed_write_changes_nothing(tmp_path):
    folder = tmp_path / 'blocks'
    folder.mkdir()
    config = MemoryConfig(channels=CHANNELS, resident=10, folder=str(folder))
    memory, cameras = LatentMemory(config), at(0, 0, 0)
    memory.write(picture(), wall(4), cameras, valid=everywhere(), observed=True)
    before, written = memory.readout(cameras), memory._store.next_serial
    shutil.rmtree(folder)
    with pytest.raises(OSError, match='blocks'):
        memory.write(picture(seed=1), wall(3), cameras, valid=everywhere(), observed=True)
    assert len(memory) == 24 and memory._store.next_serial == written
    for name, value in vars(memory.readout(cameras)).items():
        assert torch.equal(value, getattr(before, name)), name


def test_serial_numbers_restart_before_overflow():
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, dtype='float32', voxel=0.0))
    camera = at(0, 0, 0)
    memory._store.next_serial = MAX_SERIAL - 3 * 24
    for value in range(5):
        latents = torch.full((1, CHANNELS, scenes.HEIGHT, scenes.WIDTH), float(value))
        memory.write(latents, wall(4), camera, valid=everywhere(), observed=True)
        assert memory.readout(camera).latents.eq(value).all()  # of equals the later wins
    assert memory._store.next_serial < MAX_SERIAL / 2 and len(memory) == 5 * 24


def test_imagined_points_stay_until_seen_finer():
    memory = LatentMemory(CONFIG)
    memory.write(picture(), wall(4), at(0, 0, 0), valid=everywhere(), observed=False)
    again = memory.write(picture(seed=1), wall(4), at(0, 0, 0), valid=everywhere(), observed=False)
    assert again == 0
    closer = scenes.camera_row([scenes.transform(translation=(0, 0, 2.5))])
    covered = memory.readout(closer).visible
    assert memory.write(picture(seed=1), wall(1.5), closer, valid=covered, observed=False) > 0
    everything = LatentMemory(MemoryConfig(channels=CHANNELS, dtype='float32', finer=0.0))
    for seed in range(2):
        everything.write(
            picture(seed=seed), wall(4), at(0, 0, 0), valid=everywhere(), observed=False
        )
    assert torch.equal(everything.readout(at(0, 0, 0)).latents, picture(seed=1))


def test_imagined_cameras_are_written_in_turn():
    memory = LatentMemory(CONFIG)
    cameras = scenes.camera_row([scenes.transform()] * 3)
    added = memory.write(picture(3), wall(4, 3), cameras, valid=everywhere(3), observed=False)
    assert added == len(memory) == 24
    assert torch.equal(memory.readout(cameras[:1]).latents, picture(3)[:1])
