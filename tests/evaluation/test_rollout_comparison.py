"""Variants of a model on the same trajectories, as a command."""

from __future__ import annotations

import json
import math
from pathlib import Path

from models import save_small_model
import pytest

from mirage_model.cli import main
from mirage_model.evaluation.rollout_comparison import compare, parse_variant


def result(chunks: list[float], loop: float = math.nan) -> dict:
    mean = sum(chunks) / len(chunks)
    return {
        'psnr_db': mean,
        'covered_psnr_db': mean,
        'loop_psnr_db': loop,
        'chunk_psnr_db': chunks,
        'chunk_s': 1.0,
    }


def test_differences_are_paired():
    """Trajectories differ by ten decibels, variants by one and three: the error is that of two."""
    results = [
        {'a': result([20.0, 10.0]), 'b': result([21.0, 11.0])},
        {'a': result([30.0, 20.0]), 'b': result([33.0, 23.0], loop=9.0)},
    ]
    over = compare(results)['b']['over_first']
    assert over['chunk_psnr_db'] == [2.0, 2.0] and over['psnr_db'] == 2.0
    assert over['psnr_db_se'] == pytest.approx(1.0)
    assert compare(results)['a']['psnr_db_se'] == pytest.approx(5.0)
    assert math.isnan(over['loop_psnr_db'])


def test_a_variant_is_a_folder_with_settings():
    variant = parse_variant('my/model:steps=2,references=0')
    assert variant.folder == Path('my/model')
    assert variant.settings == {'steps': 2, 'references': 0}
    assert parse_variant('model').settings == {}
    for wrong in ('model:step=1', 'model:steps=', 'model:steps=-1', 'model:steps'):
        with pytest.raises(ValueError, match='is not a setting'):
            parse_variant(wrong)


@pytest.mark.slow
def test_history_changes_later_chunks_alone(tmp_path: Path, capsys):
    model, out = save_small_model(tmp_path / 'model'), tmp_path / 'out'
    variants = [f'{model}:references=0', f'{model}:references=2,preceding=1', f'{model}:steps=1']
    words = ['evaluate', 'compare', *variants, '--out', str(out), '--chunks', '2']
    assert main([*words, '--trajectories', '2']) == 0
    summary = json.loads((out / 'comparison.json').read_text())
    assert summary['n'] == 2 and len(set(summary['sha256'].values())) == 1
    history, steps = (summary['variants'][name]['over_first'] for name in variants[1:])
    assert history['chunk_psnr_db'][0] == 0 and history['chunk_psnr_db'][1] != 0
    assert steps['chunk_psnr_db'][0] != 0
    assert (out / 'comparison.md').read_text() in capsys.readouterr().out
    done = (out / '001.json').stat().st_mtime_ns
    assert main([*words, '--trajectories', '3']) == 0
    assert (out / '001.json').stat().st_mtime_ns == done, 'done again'
    assert json.loads((out / 'comparison.json').read_text())['n'] == 3
    assert main([*words, '--trajectories', '3', '--chunks', '1']) == 1
    assert 'began with another chunks' in capsys.readouterr().err
