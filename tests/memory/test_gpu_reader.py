"""Tests of the Triton kernels against the visibility rule in plain torch.

Without a GPU they run in Triton's interpreter, which does not test the compiled kernels.
"""

from __future__ import annotations

from dataclasses import replace
import os
import subprocess
import sys

from hypothesis import given, settings
import numpy as np
import pytest
import scenes
from test_cpu_reader import crowd, store_of
import torch

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

from mirage_model.memory import cpu_reader, visibility
from mirage_model.memory.gpu_reader import GpuReader
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.memory.points import MAX_SERIAL, NO_POINT
from mirage_model.memory.visibility import CameraArrays, VisibilityRule

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def winners(store, views: CameraArrays, rule: VisibilityRule):
    """Return the index of the winning point, in writing order, and its depth by the rule."""
    with np.errstate(all='ignore'):  # the interpreter computes what is masked, too
        best, *_ = GpuReader(DEVICE).nearest(store, views, rule)
    best = best.cpu()
    index = torch.where(best == NO_POINT, -1, MAX_SERIAL - (best & MAX_SERIAL))
    rank = (best >> 32).int().view(torch.float32)
    return index, torch.where(best == NO_POINT, torch.inf, rank)


@settings(max_examples=12, deadline=None)
@given(scenes.points(max_points=10, finite=True), scenes.cameras(max_cameras=2), scenes.rules)
def test_nearest_equals_the_torch_rule(points, cameras, rule):
    views = CameraArrays.from_cameras(cameras)
    index, rank = winners(store_of(points), views, rule)
    expected_index, expected_rank = visibility.nearest(points, views, rule)
    assert torch.equal(index, expected_index)
    assert torch.equal(rank, expected_rank)


@pytest.mark.parametrize(('splat_size', 'half'), [(1, True), (3, False)])
def test_gpu_readout_equals_the_cpu_readout(splat_size, half):
    rng = np.random.default_rng(0)
    poses = [scenes.transform(rng.normal(size=3), rng.normal(size=3)) for _ in range(2)]
    views = CameraArrays.from_cameras(scenes.camera_row(poses, height=8, width=12, fx=6, fy=7))
    rule = VisibilityRule(splat_size=splat_size, tolerance=0.05, near=0.05, far=12.0)
    points = crowd(600, spread=10.0)
    store = store_of(replace(points, size=points.size / 4 + 1), half=half)  # in few blocks
    now = np.arange(2, dtype=np.float32)
    options = {'channels': 2, 'half': half}
    expected = cpu_reader.readout(store, views, rule, now, **options)
    with np.errstate(all='ignore'):
        given = GpuReader(DEVICE).readout(store, views, rule, now, **options)
    for name, value in vars(expected).items():
        ours = getattr(given, name).cpu()
        if name == 'depth_ratio':  # a logarithm, which is the device's own
            torch.testing.assert_close(ours, value)
        else:
            assert torch.equal(ours, value), name
    assert expected.visible.float().mean() > 0.1


def test_copies_live_as_long_as_their_blocks():
    gpu_reader, memory = GpuReader(DEVICE), LatentMemory(MemoryConfig(channels=2, voxel=0.0))
    views = CameraArrays.from_cameras(scenes.camera_row([scenes.transform()]))

    def write(depth: float) -> None:
        memory.write(
            torch.zeros(1, 2, scenes.HEIGHT, scenes.WIDTH),
            torch.full((1, scenes.HEIGHT, scenes.WIDTH), depth),
            scenes.camera_row([scenes.transform()]),
            valid=torch.ones(1, scenes.HEIGHT, scenes.WIDTH, dtype=torch.bool),
            observed=True,
        )

    def read() -> int:
        now = np.zeros(1, np.float32)
        with np.errstate(all='ignore'):
            gpu_reader.readout(
                memory._store, views, memory.config.rule(), now, channels=2, half=True
            )
        return len(gpu_reader._copies)

    write(4.0)
    blocks = read()
    assert blocks == len(memory._store.blocks()) > 0
    write(4.0)
    assert read() == blocks


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != 'cuda', reason='needs a CUDA device')
def test_readout_is_on_the_device_of_the_cameras():
    memory = LatentMemory(MemoryConfig(channels=3))
    cameras = scenes.camera_row([scenes.transform(), scenes.transform((0, 0.3, 0))])
    shape = (2, scenes.HEIGHT, scenes.WIDTH)
    latents = torch.randn(2, 3, *shape[1:])
    memory.write(
        latents,
        torch.rand(shape) + 3,
        cameras,
        valid=torch.ones(shape, dtype=torch.bool),
        observed=True,
    )
    expected, readout = memory.readout(cameras), memory.readout(cameras.to('cuda'))
    for name, value in vars(expected).items():
        ours = getattr(readout, name)
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), value, rtol=0, atol=1e-6)


COMPILE = """
import re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mirage_model.memory import gpu_reader

def types(names, pointers):
    return {name: pointers.get(name, 'i32') for name in names.split()}

pointers = dict(
    work='*i32', count='*i64', address='*i64', pinholes='*fp32', limits='*fp32', best='*i64',
    winner='*i32', times='*fp32', latents='*fp32', visible='*i1', observed='*i1', depth='*fp32',
    ratio='*fp32', age='*fp32', offset='*fp32',
)
compete = types('work count address pinholes limits best winner items height width', pointers)
gather = types(
    'best winner count address pinholes times latents visible observed depth ratio age offset '
    'cells height width channels', pointers,
)
for kernel, signature, constants in (
    (gpu_reader._compete, compete, dict(SECOND=False, REACH=1, TILE=gpu_reader.TILE)),
    (gpu_reader._compete, compete, dict(SECOND=True, REACH=0, TILE=gpu_reader.TILE)),
    (
        gpu_reader._gather, gather,
        dict(HALF=True, NO_POINT=gpu_reader.NO_POINT, TILE=gpu_reader.TILE, CHANNELS=64),
    ),
):
    signature = {**signature, **dict.fromkeys(constants, 'constexpr')}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    built = compile(source, target=GPUTarget('cuda', 80, 32), options=gpu_reader._EXACT)
    print(*set(re.findall(r'\\b(?:fma|mad|div|mul|add|sub|atom)\\.[a-z0-9.]*', built.asm['ptx'])))
"""


@pytest.mark.slow
def test_compiled_kernels_round_each_operation(tmp_path):
    """The kernels are compiled for a GPU without one."""
    environment = {**os.environ, 'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path)}
    run = subprocess.run(
        [sys.executable, '-c', COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 3
    assert any(operation.startswith('atom') for operation in lines[0])
    for operations in lines:
        floats = {operation for operation in operations if operation.endswith('f32')}
        assert {'add.rn.f32', 'mul.rn.f32', 'div.rn.f32'} <= floats
        assert floats <= {'add.rn.f32', 'sub.rn.f32', 'mul.rn.f32', 'div.rn.f32'}
