from __future__ import annotations

import json

import pytest
import torch

from mirage_model.cli import main
from mirage_model.evaluation.benchmarks import half_resolution


def test_halves_are_means_of_four():
    frames = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert half_resolution.halved(frames)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]


@pytest.mark.slow
def test_trajectory_is_imagined_at_both_sizes(tmp_path):
    out = tmp_path / 'half.json'
    assert (
        main(
            [
                'bench',
                'half-resolution',
                '--trajectories',
                '1',
                '--frames',
                '17',
                '--out',
                str(out),
            ]
        )
        == 0
    )
    figures = json.loads(out.read_text())['metrics']
    assert len(figures) == 6
    assert all(10 < figure['value'] < 40 for figure in figures[:5])
    full, half = figures[5]['seconds']
    assert full > 0 and half > 0
