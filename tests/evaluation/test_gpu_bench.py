"""The benchmark of the GPU, at the size of mirage-tiny on the CPU."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch

from mirage_model.cli import main
from mirage_model.evaluation.benchmarks.gpu import SIZES, STAGES, VARIANTS
from mirage_model.evaluation.config import GpuVariant

WORDS = ['bench', 'gpu', '--size', 'tiny', '--device', 'cpu', '--chunks', '1', '--seconds', '1e9']


def bench(folder, *words: str) -> dict:
    out = folder / 'gpu.json'
    assert main([*WORDS, '--out', str(out), *words]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_variant_is_timed_by_stage(tmp_path):
    """Run with and without each option. Compilation itself is left out, for it takes minutes here;
    `test_acceleration` compiles."""
    with torch._dynamo.config.patch(disable=True):
        result = bench(tmp_path)
    assert list(result['variants']) == list(VARIANTS) and result['weights'] == 'random'
    for row in result['variants'].values():
        assert set(row['stages_s']) == set(STAGES) and min(row['stages_s'].values()) > 0
        assert row['chunk_s'] == pytest.approx(sum(row['stages_s'].values()))
        assert row['step_s'] * row['steps'] == pytest.approx(row['stages_s']['denoise'])
        assert row['peak_bytes'] is None, 'the CPU counts no memory'
    assert result['variants']['few_steps']['steps'] == 2


@pytest.mark.slow
def test_variants_without_time_are_listed(tmp_path):
    words = ('--only', 'plain', '--only', 'float8')
    result = bench(tmp_path, *words, '--seconds', '0.001')
    assert 'chunk_s' in result['variants']['plain']
    assert 's were left' in result['variants']['float8']['not_run']


def test_names_and_sizes_are_those_of_the_models():
    assert set(get_args(GpuVariant)) == set(VARIANTS)
    transformer, vae, config = SIZES['wan22_5b']
    assert transformer['in_channels'] == vae['z_dim'] == 48
    latent_frames = (config.chunk_frames - 1) // vae['scale_factor_temporal'] + 1
    stride = vae['scale_factor_spatial']
    assert (latent_frames, config.height // stride, config.width // stride) == (9, 44, 80)
