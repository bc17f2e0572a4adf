"""Property tests: after any writes the memory equals the oracle, bit for bit."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import oracle
import pytest
import scenes
import torch

from mirage_model.evaluation.benchmarks.memory_speed import room_depth
from mirage_model.memory.latent import LatentMemory, MemoryConfig

CHANNELS = 2
SHAPE = (scenes.HEIGHT, scenes.WIDTH)

depths = st.sampled_from(
    [0.04, 0.5, 1.0, 2.0, 2.0, 2.05, 4.0, 50.0, 9e5, math.nan, math.inf, -math.inf, 0.0, -1.0]
)
configs = st.builds(
    MemoryConfig,
    channels=st.just(CHANNELS),
    splat_size=st.sampled_from([1, 3]),
    voxel=st.sampled_from([0.0, 0.5, 1.5]),
    finer=st.sampled_from([0.0, 2.0]),
    tolerance=st.sampled_from([0.0, 0.05]),
    far=st.sampled_from([3.0, 1e6]),
    dtype=st.sampled_from(['bfloat16', 'float32']),
)


@st.composite
def writes(draw):
    """Return a write rich in ties: frames have few depths, and poses repeat."""
    cameras = draw(scenes.cameras(max_cameras=2))
    n = len(cameras)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    palette = np.array(draw(st.lists(depths, min_size=1, max_size=3)))
    depth = torch.from_numpy(rng.choice(palette, (n, *SHAPE))).float()
    valid = torch.isfinite(depth) & (depth > 0) & torch.from_numpy(rng.random((n, *SHAPE)) < 0.7)
    return {
        'latents': torch.from_numpy(rng.standard_normal((n, CHANNELS, *SHAPE))).float(),
        'depth': depth,
        'cameras': cameras,
        'valid': valid,
        'observed': draw(st.booleans()),
        'confidence': torch.from_numpy(rng.choice([0.0, 0.5, 1.0], (n, *SHAPE))).float(),
    }


@settings(max_examples=40, deadline=None)
@given(configs, st.lists(writes(), min_size=1, max_size=3), scenes.cameras(max_cameras=2))
def test_any_writes_read_as_in_the_oracle(config, writes, cameras):
    memory, loops = LatentMemory(config), oracle.LoopMemory(config)
    for write in writes:
        memory.write(**write)
        loops.write(**write)
    assert len(memory) == len(loops.held)
    readout, expected = memory.readout(cameras), loops.readout(cameras)
    assert {tuple(place) for place in readout.visible.nonzero().tolist()} == set(expected)
    for (camera, row, column), cell in expected.items():
        place = (camera, row, column)
        assert torch.equal(readout.latents[camera, :, row, column], cell['latents'])
        assert readout.observed[place] == cell['observed']
        assert readout.depth[place] == cell['depth'] and readout.age[place] == cell['age']
        assert tuple(readout.offset[camera, :, row, column].numpy()) == cell['offset']
        # a logarithm may differ in its last bit from one library to another
        assert readout.depth_ratio[place].item() == pytest.approx(
            math.log(cell['depth_ratio']), abs=1e-6
        )


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(5)), st.sampled_from([1, 3]))
def test_write_order_does_not_change_the_readout(order, splat_size):
    """Views of one room: no free space to clear, no merging, no ties."""
    rng = np.random.default_rng(0)
    poses = [
        scenes.transform((0, rng.uniform(-3, 3), 0), rng.uniform(1.0, 2.0, 3)) for _ in range(7)
    ]
    cameras = scenes.camera_row(poses, height=44, width=80, fx=40, fy=40)
    depth = room_depth(cameras)
    latents = torch.from_numpy(rng.standard_normal((7, CHANNELS, 44, 80))).float()
    config = MemoryConfig(channels=CHANNELS, voxel=0.0, splat_size=splat_size)
    straight, shuffled = LatentMemory(config), LatentMemory(config)
    for memory, way in ((straight, range(5)), (shuffled, order)):
        for k in way:
            one, valid = slice(k, k + 1), torch.ones(1, 44, 80, dtype=torch.bool)
            memory.write(latents[one], depth[one], cameras[one], valid=valid, observed=True)
    assert len(straight) == len(shuffled) == 5 * 44 * 80
    expected, readout = straight.readout(cameras[5:]), shuffled.readout(cameras[5:])
    for name, value in vars(expected).items():
        if name != 'age':  # the origin is that of the first write, and times are rounded from it
            assert torch.equal(value, getattr(readout, name)), name
    torch.testing.assert_close(expected.age, readout.age)
