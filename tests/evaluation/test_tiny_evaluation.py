"""The evaluation of a model on drives through held-out maps, as a command."""

from __future__ import annotations

import json
import math
from pathlib import Path
import sys

from models import CHUNK_FRAMES, save_small_model
import pytest

from mirage_model.evaluation import tiny

FIGURES = (
    'codec_psnr_db imagined_psnr_db empty_memory_psnr_db repeat_seed_psnr_db covered_psnr_db covered_codec_psnr_db '
    'covered_first_chunk_psnr_db codec_chroma_ratio closed_loop_psnr_db closed_loop_empty_psnr_db gradient_energy_ratio '
    'depth_abs_rel sky_iou mover_iou'
).split()


def test_it_is_measured_pictured_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model, out = save_small_model(tmp_path / 'model'), tmp_path / 'out'
    given = f'tiny --model {model} --out {out} --frames {CHUNK_FRAMES} --workers 1 --trajectories'

    def run(count: int) -> dict:
        monkeypatch.setattr(sys, 'argv', [*given.split(), str(count)])
        tiny.main()
        return json.loads((out / 'tiny.json').read_text())

    run(2)
    (folder,) = out.glob('tiny-*')
    first = (folder / '000.json').stat().st_mtime_ns
    summary = run(3)
    assert (folder / '000.json').stat().st_mtime_ns == first, 'done again'
    assert [path.name.split('-')[-1] for path in sorted(folder.glob('*.png'))] == [
        'turn.png',
        'forward.png',
        'out_and_back.png',
    ]
    assert summary['trajectories'] == 3 and summary['frames_each'] == CHUNK_FRAMES
    for name in FIGURES:
        assert name in summary and f'{name}_se' in summary, name
    assert math.isfinite(summary['imagined_psnr_db']) and summary['imagined_psnr_db_se'] > 0
    assert len(summary['chunk_psnr_db']) == 1 and len(summary['coverage_bins_psnr_db']) == 10
    assert summary['closed_loop_psnr_db_se'] is None, 'of one trajectory the error is not known'
    assert (out / 'tiny.md').read_text() in capsys.readouterr().out
