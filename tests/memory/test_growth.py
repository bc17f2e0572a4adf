"""Tests of memory growth in a game map: revisits add few points."""

from __future__ import annotations

import pytest
import torch

from mirage_model.cli import main
from mirage_model.evaluation.benchmarks.efficiency import ComposedSize, memory_laps
from mirage_model.evaluation.benchmarks.memory_growth import (
    Walk,
    coming_back,
    corridor_drive,
    ways,
    written,
)
from mirage_model.memory.latent import LatentMemory, MemoryConfig

CHANNELS = 2
OUT = 17


@pytest.fixture(scope='module')
def out_and_back() -> tuple[Walk, Walk, Walk]:
    """Return a random walk, the same walk back, and a walk back beside it."""
    return ways('E1M1', OUT, stride=8, seed=3)


def test_revisit_adds_few_points(out_and_back):
    out, *backs = out_and_back
    for back in backs:
        found = coming_back(MemoryConfig(channels=CHANNELS), out, back)
        assert 500 < found['cells_out'] < out.valid.sum() / 2
        assert found['added_back'] < 0.05


def test_merging_keeps_views_covered(out_and_back):
    out, _, beside = out_and_back
    found = coming_back(MemoryConfig(channels=CHANNELS), out, beside)
    assert found['covered_1'] > 0.92 and found['covered_3'] > 0.97
    memory = LatentMemory(MemoryConfig(channels=CHANNELS))
    written(memory, beside)
    last = beside[-1:]
    assert memory.readout(last.cameras).visible[last.valid].all()


def test_without_merging_all_valid_cells_read_back(out_and_back):
    one = out_and_back[0][:1]
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, voxel=0.0, dtype='float32'))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, CHANNELS, *one.depth.shape[1:], generator=generator)
    memory.write(latents, one.depth, one.cameras, valid=one.valid, observed=True)
    readout = memory.readout(one.cameras)
    assert torch.equal(readout.visible, one.valid)
    assert torch.equal(readout.latents, torch.where(one.valid[:, None], latents, 0.0))


def test_forward_trajectory_at_full_size_stays_small():
    drive = corridor_drive()
    assert drive.seed_cells == 44 * 80 and 0.83 < drive.covered < 0.87
    assert drive.nbytes / drive.cells <= 128
    assert drive.nbytes - drive.seed_nbytes <= 2.6 * 2**20


@pytest.mark.parametrize('name', ['latent', 'rgb_cloud'])
def test_imagined_trajectory_adds_only_new_or_finer_points(name):
    """Points imagined from afar are too coarse from close by.

    If they stayed visible, each passing camera would write finer points beside them.
    """
    size = ComposedSize(height=176, width=320, step=0.05)
    cells = [lap['cells'] for lap in memory_laps(size, name, 12)]
    stride = 1 if name == 'rgb_cloud' else size.vae['scale_factor_spatial']
    seen = size.new_frames // 4 * (size.height // stride) * (size.width // stride)
    assert (cells[-1] - cells[-4]) / 3 < 0.2 * seen


def test_command_reports_results(tmp_path, capsys):
    path = tmp_path / 'growth.json'
    assert main(['bench', 'growth', '--frames', '9', '--out', str(path)]) == 0
    assert 'bytes of a cell of 48 channels' in capsys.readouterr().out and path.exists()
