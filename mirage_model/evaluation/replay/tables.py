"""Tables of a replay by frame, segment and horizon, as CSV and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from mirage_model.evaluation.image_quality import QUALITY, mean_with_interval
from mirage_model.evaluation.replay.geometry import METRICS
from mirage_model.evaluation.replay.replay import WARP_METRICS, SegmentResult

Row = dict[str, Any]
MEANS = (
    *QUALITY,
    'visible',
    'observed',
    'last_frame_psnr_all',
    'last_frame_ssim_all',
    *WARP_METRICS,
    *METRICS,
)
"""Metrics of a frame that are averaged over the frames that have them."""


def frame_rows(result: SegmentResult) -> list[Row]:
    """Return the rows of a segment's frames, None where a value is unknown."""
    return [{key: _known(value) for key, value in row.items()} for row in result.rows]


def segment_row(result: SegmentResult) -> Row:
    """Return means over the frames of a segment, and its times."""
    chunks = result.seconds['chunks']
    return {
        'segment': result.index,
        'seed': result.seed,
        'start_nanoseconds': result.start,
        'frames': len(result.rows),
        'depth_source': result.depth_source,
        'views_rejected': len(result.rejected),
        **_means(result.rows),
        'observing_s': float(result.seconds['observing']),
        'imagining_s': float(sum(chunks)),
        'first_chunk_s': float(chunks[0]),
    }


def horizon_rows(frames: list[Row]) -> list[Row]:
    """Return means over all segments for each number of frames ahead, with the 95% interval of
    PSNR."""
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
    """Write NAME.csv and NAME.parquet of each table; unknown values are empty."""
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
