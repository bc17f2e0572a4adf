"""Tables of a replay: every frame, every segment, every horizon; CSV and Parquet of the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import math
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from mirage_model.evaluation.metrics import QUALITY, mean_with_interval
from mirage_model.evaluation.replay.geometry import FIGURES
from mirage_model.evaluation.replay.replay import Replayed

Row = dict[str, float | int | str | None]
MEANS = (*QUALITY, 'visible', 'observed', 'held_psnr_all', 'held_ssim_all', *FIGURES)
"""Figures of a frame that are averaged; over the frames that have them."""


def frame_rows(replayed: Replayed) -> list[Row]:
    return [{key: _known(value) for key, value in row.items()} for row in replayed.rows]


def segment_row(replayed: Replayed) -> Row:
    """Means over the frames of one segment, and the seconds that it took."""
    chunks = replayed.seconds['chunks']
    return {
        'segment': replayed.index,
        'seed': replayed.seed,
        'start_nanoseconds': replayed.start,
        'frames': len(replayed.rows),
        'depth_source': replayed.depth_source,
        'views_refused': len(replayed.refused),
        **_means(replayed.rows),
        'observing_s': float(replayed.seconds['observing']),
        'imagining_s': float(sum(chunks)),
        'first_chunk_s': float(chunks[0]),
    }


def horizon_rows(frames: list[Row]) -> list[Row]:
    """Means over all segments of the frames that are as far ahead, with the 95% interval of PSNR."""
    rows = []
    for number in sorted({row['frame'] for row in frames}):
        here = [row for row in frames if row['frame'] == number]
        row: Row = {'frame': number, 'segments': len(here), **_means(here)}
        row['horizon_s'] = _mean(r['horizon_s'] for r in here)
        interval = mean_with_interval([_number(r['psnr_all']) for r in here])
        row['psnr_all_low'], row['psnr_all_high'] = (
            _known(interval['low']),
            _known(interval['high']),
        )
        rows.append(row)
    return rows


def write_tables(out: Path, tables: dict[str, list[Row]]) -> None:
    """``NAME.csv`` and ``NAME.parquet`` each; what is not known is empty, never zero."""
    for name, rows in tables.items():
        table = pa.Table.from_pylist(rows)
        csv.write_csv(table, out / f'{name}.csv')
        parquet.write_table(table, out / f'{name}.parquet')


def _means(rows: Sequence[Row]) -> Row:
    return {name: _mean(_number(row[name]) for row in rows) for name in MEANS}


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _known(value: float | int) -> float | int | None:
    return None if isinstance(value, float) and math.isnan(value) else value
