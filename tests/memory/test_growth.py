"""Tests of memory growth in a game map: revisits add few points."""

from __future__ import annotations

import pytest
import torch

from mirage_model.cli import main
from mirage_model.evaluation.benchmarks.efficiency import ComposedSize, memory_laps
from mirage_model.evaluation.benchmarks.memory_growth import (
    Recording,
    coming_back,
    corridor,
    out_and_back,
    write_recording,
)
from mirage_model.memory.latent import LatentMemory, MemoryConfig

CHANNELS = 2
OUT = 17


@pytest.fixture(scope='module')
def paths() -> tuple[Recording, Recording, Recording]:
    """Return a random path, the same path back, and a path back beside it."""
    return out_and_back('E1M1', OUT, stride=8, seed=3)


def test_revisit_adds_few_points(paths):
    out, *backs = paths
    for back in backs:
        found = coming_back(MemoryConfig(channels=CHANNELS), out, back)
        assert 500 < found['points_out'] < out.valid.sum() / 2
        assert found['added_back'] < 0.05


def test_merging_keeps_views_covered(paths):
    out, _, beside = paths
    found = coming_back(MemoryConfig(channels=CHANNELS), out, beside)
    assert found['covered_1'] > 0.92 and found['covered_3'] > 0.97
    memory = LatentMemory(MemoryConfig(channels=CHANNELS))
    write_recording(memory, beside)
    last = beside[-1:]
    assert memory.readout(last.cameras).visible[last.valid].all()


def test_without_merging_all_valid_cells_read_back(paths):
    one = paths[0][:1]
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, voxel=0.0, dtype='float32'))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, CHANNELS, *one.depth.shape[1:], generator=generator)
    memory.write(latents, one.depth, one.cameras, valid=one.valid, observed=True)
    readout = memory.readout(one.cameras)
    assert torch.equal(readout.visible, one.valid)
    assert torch.equal(readout.latents, torch.where(one.valid[:, None], latents, 0.0))


@pytest.mark.slow
def test_forward_trajectory_at_full_size_stays_small():
    growth = corridor()
    assert growth.seed_points == 44 * 80 and 0.83 < growth.covered < 0.87
    assert growth.nbytes / growth.points <= 128
    assert growth.nbytes - growth.seed_nbytes <= 2.6 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize('name', ['latent', 'rgb_cloud'])
def test_imagined_trajectory_adds_only_new_or_finer_points(name):
    """Points imagined from afar are too coarse from close by.

    If they stayed visible, each passing camera would write finer points beside them.
    """
    size = ComposedSize(height=176, width=320, step=0.05)
    points = [lap['points'] for lap in memory_laps(size, name, 12)]
    stride = 1 if name == 'rgb_cloud' else size.vae['scale_factor_spatial']
    seen = size.new_frames // 4 * (size.height // stride) * (size.width // stride)
    assert (points[-1] - points[-4]) / 3 < 0.2 * seen


@pytest.mark.slow
def test_command_reports_results(tmp_path, capsys):
    path = tmp_path / 'growth.json'
    assert main(['bench', 'growth', '--frames', '9', '--out', str(path)]) == 0
    assert 'bytes of a point of 48 channels' in capsys.readouterr().out and path.exists()
