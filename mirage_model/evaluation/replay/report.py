"""The report of a replay: one HTML file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
import html
import io
from pathlib import Path

from matplotlib.figure import Figure
import numpy as np

from mirage_model.evaluation.image_quality import MISSING, QUALITY
from mirage_model.evaluation.replay.replay import SegmentResult
from mirage_model.evaluation.replay.tables import Row
from mirage_model.evaluation.replay.video import at_most, mask_in_colour, mp4, side_by_side
from mirage_model.io import as_json

_STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { margin: 0 auto; padding: 1rem; max-width: 60rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
svg, video { width: 100%; height: auto; display: block } video { image-rendering: pixelated }
figure { margin: 1rem 0; min-width: 0 } figcaption { font-size: .9rem; color: #555 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap }
th, td { border-bottom: 1px solid #ddd }
pre { overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: .8rem }
.charts { display: grid; gap: 1rem }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
.bad { color: #a00 }
"""
_WIDEST = 360
"""Largest width of an image in a video [px]: few phones play wider videos."""
_REGIONS = {
    'all': ('all pixels', '#222222'),
    'covered': ('covered by the memory', '#2a8a50'),
    'uncovered': ('other pixels', '#d08a10'),
}
_HORIZON = ('horizon_s', 'segments', *QUALITY, 'psnr_all_low', 'psnr_all_high', 'visible')
_HORIZON += ('last_frame_psnr_all', 'warp_psnr_all', 'better_than_warp')
_SEGMENT = ('segment', 'seed', 'frames', *QUALITY, 'visible', 'observed', 'last_frame_psnr_all')
_SEGMENT += ('warp_psnr_all', 'better_than_warp')
_SEGMENT += ('observing_s', 'imagining_s', 'first_chunk_s')


def write_report(
    path: Path,
    *,
    about: dict,
    segments: Sequence[Row],
    horizons: Sequence[Row],
    find: Callable[[Row], SegmentResult],
    left_out: Sequence[str],
    failures: Sequence[str],
) -> None:
    """Write the report.

    Args:
        find: Loads the result of a segment's row, for the videos of the worst and the median
        segments.
    """
    ranked = sorted(segments, key=lambda row: _plain(row['psnr_all']))
    middle = len(ranked) // 2
    shown_segments = {'worst': ranked[:2], 'median': ranked[middle : middle + 2]}
    parts = [
        f'<h1>Replay of {_safe(about["bag"])}</h1>',
        f'<p>{len(segments)} segments of {len(horizons)} frames, '
        f'imagined by {_safe(about["model"])} ('
        f'{about["sha256"][:12]}) {_safe(about["way"])}.</p>',
        _summary(segments),
        _against_warp(segments),
        '<h2>Quality over the horizon</h2><div class="charts">',
        _curves(horizons, 'psnr', 'PSNR, dB'),
        _curves(horizons, 'ssim', 'SSIM'),
        '</div><h2>Segments</h2><div class="charts">',
        _histogram([_plain(row['psnr_all']) for row in segments], 'PSNR of a segment, dB'),
        _histogram([100 * _plain(row['visible']) for row in segments], 'covered by the memory, %'),
        _histogram(
            [_plain(row['first_chunk_s']) for row in segments], 'seconds of the first chunk'
        ),
        '</div>',
        '<h2>The worst and the median segments</h2>',
        '<p>Recorded frames, imagined frames, warp and inpaint where the recording has depth, '
        'and the mask: green observed, amber imagined before, black not covered.</p>',
        *(
            _video(name, row, find(row), about)
            for name, rows in shown_segments.items()
            for row in rows
        ),
        '<h2>By horizon</h2>',
        _table('horizons', _HORIZON, horizons),
        '<h2>By segment</h2>',
        _table('segments', _SEGMENT, segments),
        *_list('Failed', failures, 'bad'),
        *_list('Left out of the bag', left_out, ''),
        *_list('Not measured', [f'{name}: {reason}' for name, reason in MISSING.items()], ''),
        '<h2>Configuration</h2>',
        f'<pre>{_safe(as_json(about))}</pre>',
    ]
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f'<title>Replay of {_safe(about["bag"])}</title><style>{_STYLE}</style></head><body>'
        + '\n'.join(parts)
        + '</body></html>\n'
    )


def shown(value: float | int | str | None) -> str:
    """Format a value with three digits after the point, or a dash for None."""
    if value is None:
        return '–'
    return f'{value:.3f}' if isinstance(value, float) else str(value)


def _summary(segments: Sequence[Row]) -> str:
    names = {
        'psnr_all': 'PSNR, all pixels',
        'psnr_covered': 'PSNR, covered pixels',
        'psnr_uncovered': 'PSNR, other pixels',
        'last_frame_psnr_all': 'PSNR of the last observed frame',
        'warp_psnr_all': 'PSNR of the last observed frame, warped and inpainted',
        'better_than_warp': 'share of frames closer than warp and inpaint',
        'ssim_all': 'SSIM, all pixels',
        'ssim_covered': 'SSIM, covered pixels',
        'ssim_uncovered': 'SSIM, other pixels',
        'visible': 'share of pixels covered',
        'camera_found': 'share of frames whose camera is estimated',
        'turn_error_deg': 'rotation error against the plan, degrees',
        'shift_error_m': 'translation error against the plan, m',
        'consistency_db': 'consistency of imagined frames, dB',
        'true_consistency_db': 'consistency of recorded frames, dB',
    }
    cells = []
    for name, title in names.items():
        known = [row[name] for row in segments if row[name] is not None]
        mean = float(np.mean(known)) if known else None
        cells.append(f'<tr><th>{title}</th><td>{shown(mean)}</td></tr>')
    table = f'<table><caption>Means over segments</caption>{"".join(cells)}</table>'
    return f'<div class="wide">{table}</div>'


def _against_warp(segments: Sequence[Row]) -> str:
    """Return a sentence on how often imagining was closer to the recording than a warp."""
    known = [row for row in segments if row['warp_psnr_all'] is not None]
    if not known:
        return '<p>Without recorded depth there is no warp to compare with.</p>'
    won = sum(row['psnr_all'] > row['warp_psnr_all'] for row in known)
    frames = sum(row['better_than_warp'] * row['frames'] for row in known)
    count = sum(row['frames'] for row in known)
    return (
        f'<p id="against-warp">By PSNR, imagining was closer to the recording than the last '
        f'observed frame, warped by its depth and inpainted, in {won} of {len(known)} segments '
        f'and in {frames:.0f} of {count} frames.</p>'
    )


def _curves(horizons: Sequence[Row], metric: str, label: str) -> str:
    figure, axes = _figure()
    seconds = [_plain(row['horizon_s']) for row in horizons]
    for region, (name, colour) in _REGIONS.items():
        values = [_plain(row[f'{metric}_{region}']) for row in horizons]
        axes.plot(seconds, values, color=colour, label=name)
    if metric == 'psnr':
        low, high = (
            [_plain(row[f'psnr_all_{end}']) for row in horizons] for end in ('low', 'high')
        )
        axes.fill_between(seconds, low, high, color='#222222', alpha=0.12, linewidth=0)
    last_frame = [_plain(row[f'last_frame_{metric}_all']) for row in horizons]
    axes.plot(seconds, last_frame, ':', color='#4070c0', label='last observed frame')
    if any(row['warp_psnr_all'] is not None for row in horizons):
        warp = [_plain(row[f'warp_{metric}_all']) for row in horizons]
        axes.plot(seconds, warp, '--', color='#b04090', label='warp and inpaint')
    axes.set_xlabel('seconds ahead')
    axes.set_ylabel(label)
    axes.legend(fontsize=8)
    return _svg(figure, f'{label} over the horizon')


def _histogram(values: Sequence[float], label: str) -> str:
    figure, axes = _figure()
    axes.hist([value for value in values if np.isfinite(value)], bins=12, color='#4070c0')
    axes.set_xlabel(label)
    axes.set_ylabel('segments')
    return _svg(figure, f'Histogram: {label}')


def _figure():
    figure = Figure(figsize=(4.2, 3.0), layout='constrained')
    axes = figure.subplots()
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format='svg', metadata={'Date': None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index('<svg') :]
    return f'<figure role="img" aria-label="{_safe(title)}">{drawing}</figure>'


def _video(name: str, row: Row, replayed: SegmentResult, about: dict) -> str:
    pictures = [replayed.recorded, replayed.frames, mask_in_colour(replayed.visibility)]
    if replayed.warp is not None:
        pictures.insert(2, replayed.warp)
    frames = side_by_side(*(at_most(each, _WIDEST) for each in pictures))
    # the codec halves the resolution of colour; the browser enlarges the rest
    scale = 2 if replayed.frames.shape[2] <= 160 else 1
    data = base64.b64encode(mp4(frames, frame_rate=about['frame_rate'], scale=scale)).decode()
    caption = (
        f'{name}: segment {row["segment"]}, seed {row["seed"]}, PSNR {shown(row["psnr_all"])} dB, '
        f'of warp and inpaint {shown(row["warp_psnr_all"])}, '
        f'covered {shown(row["visible"])}'
    )
    return (
        f'<figure><video controls loop muted playsinline preload="auto" '
        f'src="data:video/mp4;base64,{data}"></video><figcaption>{_safe(caption)}</figcaption></figure>'
    )


def _table(name: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    head = ''.join(f'<th>{column}</th>' for column in columns)
    body = ''.join(
        '<tr>' + ''.join(f'<td>{shown(row[column])}</td>' for column in columns) + '</tr>'
        for row in rows
    )
    return (
        f'<div class="wide"><table id="{name}"><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>'
    )


def _list(title: str, lines: Sequence[str], kind: str) -> list[str]:
    if not lines:
        return []
    items = ''.join(f'<li class="{kind}">{_safe(line)}</li>' for line in lines)
    return [f'<h2>{title}</h2><ul>{items}</ul>']


def _plain(value: float | int | None) -> float:
    return float('nan') if value is None else float(value)


def _safe(text: object) -> str:
    return html.escape(str(text))
