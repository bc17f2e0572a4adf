from __future__ import annotations

import json
from pathlib import Path

from mirage_model.cli import main


def write(folder: Path, file: str, content: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))


def test_a_table_of_two_folders(tmp_path, capsys):
    """Missing values are dashes; a metric that nobody measured has no column."""
    aspects = {'3d_consistency': 92.21, 'photometric_consistency': None}
    write(
        tmp_path / 'full',
        'worldscore.json',
        {'average': 70.36, 'static': 73.6, 'aspects': aspects},
    )
    figures = {'psnr_all': {'mean': 18.384}, 'ssim_all': {'mean': None}}
    write(tmp_path / 'full', 'realestate10k.json', {'metrics': figures})
    write(tmp_path / 'rgb', 'worldscore.json', {'average': 67.71, 'static': None})
    out = tmp_path / 'table.md'
    words = [f'latents={tmp_path / "full"}', f'RGB points={tmp_path / "rgb"}']
    assert main(['evaluate', 'tables', *words, '--first', 'memory', '--out', str(out)]) == 0
    expected = (
        '| memory | WorldScore | static | 3D consistency | RE10K PSNR |\n'
        '|---|---|---|---|---|\n'
        '| latents | 70.36 | 73.60 | 92.21 | 18.38 |\n'
        '| RGB points | 67.71 | – | – | – |\n'
    )
    assert out.read_text() == capsys.readouterr().out == expected


def test_folders_without_results_are_named(tmp_path, capsys):
    assert main(['evaluate', 'tables', f'a={tmp_path}']) == 1
    assert 'no results, one of realestate10k.json' in capsys.readouterr().err
    assert main(['evaluate', 'tables', 'nothing']) == 1
    assert "'nothing' is not allowed, NAME=DIR" in capsys.readouterr().err
