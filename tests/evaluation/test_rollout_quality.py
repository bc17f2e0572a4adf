"""The command evaluates a model on trajectories through held-out maps."""

from __future__ import annotations

import json
import math
from pathlib import Path
import shutil

from models import CHUNK_FRAMES, save_small_model
import pytest
import torch

from mirage_model.cli import main
from mirage_model.evaluation import rollout_quality

FIGURES = (
    'codec_psnr_db imagined_psnr_db empty_memory_psnr_db repeat_seed_psnr_db '
    'covered_psnr_db covered_codec_psnr_db '
    'codec_chroma_ratio loop_psnr_db loop_empty_psnr_db first_psnr_db warp_first_holes_psnr_db '
    'empty_first_observed_psnr_db repeat_first_psnr_db flat_first_psnr_db warp_psnr_db '
    'gradient_ratio_observed codec_gradient_ratio depth_constant_abs_rel frames_per_second '
    'gradient_energy_ratio '
    'depth_abs_rel sky_iou mover_iou'
).split()


def test_frames_are_binned_by_coverage():
    truth = torch.zeros(4, 3, 10, 10)
    covered = torch.zeros(4, 10, 10, dtype=torch.bool)
    covered[1, :3], covered[2], covered[3] = True, True, True
    frames = torch.stack([torch.full((3, 10, 10), error) for error in (1.0, 0.1, 0.1, 0.01)])
    imagined = rollout_quality.Imagined(
        frames=frames, covered=covered, observed=covered, seconds=1.0
    )
    found = rollout_quality.by_coverage(imagined, truth, slice(None))
    assert found[0] == pytest.approx(0) and found[3] == pytest.approx(20)
    assert found[9] == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2), abs=1e-4)
    assert all(math.isnan(found[number]) for number in (1, 2, 4, 5, 6, 7, 8))
    assert rollout_quality.by_coverage(imagined, truth, slice(3, 4))[9] == pytest.approx(
        40, abs=1e-4
    )


def test_swapped_channels_change_the_mean_colour():
    truth = torch.rand(2, 3, 4, 4) * torch.tensor([0.9, 0.5, 0.3]).view(3, 1, 1)
    assert rollout_quality.colour_ratios(truth, truth).tolist() == [1, 1, 1]
    red, green, blue = rollout_quality.colour_ratios(truth.flip(1), truth).tolist()
    assert red < 0.6 and green == 1 and blue > 1.6


@pytest.mark.slow
def test_evaluation_writes_images_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, out = save_small_model(tmp_path / 'model'), tmp_path / 'out'
    given = f'evaluate tiny --out {out} --frames {CHUNK_FRAMES} --workers 1 --houses 0'

    def run(count: int, model: Path = model) -> dict:
        words = ['--trajectories', str(count), '--model', str(model)]
        assert main([*given.split(), *words]) == 0
        return json.loads((out / 'tiny.json').read_text())

    run(2)
    (folder,) = out.glob('tiny-*')
    first = (folder / 'doom-000.json').stat().st_mtime_ns
    summary = run(3)
    assert (folder / 'doom-000.json').stat().st_mtime_ns == first, 'done again'
    assert [path.name.split('-')[-1] for path in sorted(folder.glob('*.png'))] == [
        'turn.png',
        'forward.png',
        'out_and_back.png',
    ]
    assert summary['frames_each'] == CHUNK_FRAMES and 'houses' not in summary
    summary = summary['doom']
    assert summary['n'] == 3
    for name in FIGURES:
        assert name in summary and f'{name}_se' in summary, name
    assert math.isfinite(summary['imagined_psnr_db']) and summary['imagined_psnr_db_se'] > 0
    assert len(summary['chunk_psnr_db']) == 1 and len(summary['coverage_bins_psnr_db']) == 10
    assert summary['loop_psnr_db_se'] is None, 'of one trajectory the error is not known'
    assert (out / 'tiny.md').read_text() in capsys.readouterr().out
    other = shutil.copytree(model, tmp_path / 'other') / 'model.json'
    settings = json.loads(other.read_text())
    other.write_text(json.dumps({**settings, 'steps': settings['steps'] + 1}))
    run(1, other.parent)
    assert len(list(out.glob('tiny-*'))) == 2, 'other settings are measured anew'
