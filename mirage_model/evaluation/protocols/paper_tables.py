"""Tables in the paper's form from folders of results: ``mirage evaluate tables NAME=DIR ...``

A folder may hold ``worldscore.json``, ``realestate10k.json`` and ``summary.json`` of a replay. The
rows are the folders in their order: variants of an ablation, or sources of depth. What was not
measured is a dash.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path

from mirage_model.evaluation.config import TablesConfig

Keys = tuple[str, ...]
COLUMNS: dict[str, tuple[str, Keys, str]] = {
    'WorldScore': ('worldscore.json', ('average',), '.2f'),
    'static': ('worldscore.json', ('static',), '.2f'),
    'dynamic': ('worldscore.json', ('dynamic',), '.2f'),
    '3D consistency': ('worldscore.json', ('aspects', '3d_consistency'), '.2f'),
    'photometric': ('worldscore.json', ('aspects', 'photometric_consistency'), '.2f'),
    'RE10K PSNR': ('realestate10k.json', ('metrics', 'psnr_all', 'mean'), '.2f'),
    'SSIM': ('realestate10k.json', ('metrics', 'ssim_all', 'mean'), '.3f'),
    'LPIPS': ('realestate10k.json', ('metrics', 'lpips', 'mean'), '.3f'),
    'closed loop PSNR': ('realestate10k.json', ('metrics', 'closed_loop_psnr_all', 'mean'), '.2f'),
    'closed loop SSIM': ('realestate10k.json', ('metrics', 'closed_loop_ssim_all', 'mean'), '.3f'),
    'replay PSNR': ('summary.json', ('psnr_all',), '.2f'),
    'covered': ('summary.json', ('psnr_covered',), '.2f'),
    'not covered': ('summary.json', ('psnr_uncovered',), '.2f'),
}
"""File, keys and number format of each column."""


def table(folders: Sequence[tuple[str, Path]], *, first: str = 'variant') -> str:
    """Return a Markdown table without empty columns.

    Raises ValueError for a folder without results.
    """
    found = {name: _read(folder) for name, folder in folders}
    columns = {
        title: how
        for title, how in COLUMNS.items()
        if any(_look_up(files, how) is not None for files in found.values())
    }
    lines = [f'| {first} | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for name, files in found.items():
        cells = []
        for how in columns.values():
            value = _look_up(files, how)
            cells.append('–' if value is None else format(value, how[2]))
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _read(folder: Path) -> dict[str, dict]:
    files = sorted({file for file, _, _ in COLUMNS.values()})
    found = {
        file: json.loads((folder / file).read_text()) for file in files if (folder / file).exists()
    }
    if not found:
        raise ValueError(f'{folder}: no results, one of {", ".join(files)} is needed')
    return found


def _look_up(files: dict[str, dict], how: tuple[str, Keys, str]) -> float | None:
    value: object = files.get(how[0])
    for key in how[1]:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def main(config: TablesConfig) -> int:
    """Print the table, and write it where a file is given; return the exit status."""
    folders = []
    for row in config.folders:
        name, equals, folder = row.partition('=')
        if not equals:
            raise ValueError(f'folders: {row!r} is not allowed, NAME=DIR is needed')
        folders.append((name, Path(folder)))
    text = table(folders, first=config.first)
    if config.out:
        config.out.write_text(text)
    print(text, end='')
    return 0
