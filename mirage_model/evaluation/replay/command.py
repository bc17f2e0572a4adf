"""Replay a recording from its file, without ROS: ``mirage replay BAG --config FILE --out DIR``.

Writes tables, a bag of results and ``report.html``. An interrupted replay continues where it
stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
import math
import multiprocessing
from pathlib import Path
import re
import shutil
import sys

import numpy as np
from tqdm import tqdm

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout
from mirage_model.evaluation.config import ReplayCommand, ReplayConfig
from mirage_model.evaluation.image_quality import QUALITY
from mirage_model.evaluation.replay.bag_recovery import readable_copy
from mirage_model.evaluation.replay.replay import ReplayEngine, load, replay, run_description
from mirage_model.evaluation.replay.report import write_report
from mirage_model.evaluation.replay.results_bag import track_numbers, write_bag
from mirage_model.evaluation.replay.segments import Segment, segments_of
from mirage_model.evaluation.replay.tables import (
    frame_rows,
    horizon_rows,
    segment_row,
    write_tables,
)
from mirage_model.interface import ModelInfo
from mirage_model.io import begin_run, write_json


@dataclass(frozen=True, kw_only=True)
class ReplayOutcome:
    """Results of a replay: their folder and number, what failed and what was left out."""

    out: Path
    results: int
    failures: list[str]
    left_out: list[str]


def open_bag(path: Path, config: BagConfig, engine: ModelInfo) -> Bag:
    """Open a bag at the model's frame size and rate."""
    layout = Layout(
        height=engine.height, width=engine.width, rate=engine.frame_rate, least=1, frames=10**9
    )
    return Bag(path, config, layout)


def run(
    engine: ReplayEngine,
    path: Path,
    bag_config: BagConfig,
    config: ReplayConfig,
    out: Path,
    *,
    way: str = 'from the file',
) -> ReplayOutcome:
    """Replay the segments that are missing from ``out``, then write tables, bag and report of all.

    Args:
        engine: The engine of the first device.
        way: How the results were made, for the report.

    Raises:
        ValueError: The bag or an option cannot be used, or nothing could be evaluated. Finished
            segments are kept.
    """
    whole, damage = readable_copy(path, out / 'intact')
    failures = [damage] if damage else []
    try:
        bag = open_bag(whole, bag_config, engine.describe())
        failures += bag.broken
        listing = bag.listing()
        only_lacking = [entry for entry in listing.left_out if entry[2] not in bag.broken]
        segments, left_out = segments_of(
            replace(listing, left_out=only_lacking), bag.stamps, bag.layout.rate, config
        )
        about = run_description(bag, engine, config, way=way)
        begin_run(out / 'config.json', about)
        folder = out / 'segments'
        folder.mkdir(exist_ok=True)
        failures += _replay_all(engine, bag, segments, config, folder)
        left_out += [doubt for doubt in bag.doubts if not any(doubt in line for line in left_out)]
    except ValueError as error:
        raise ValueError('; '.join([str(error), *failures])) from None
    finally:
        shutil.rmtree(out / 'intact', ignore_errors=True)
    return write_results(
        out, about, world_frame=bag.world_frame, left_out=left_out, failures=failures
    )


def _replay_all(
    engine: ReplayEngine, bag: Bag, segments: list[Segment], config: ReplayConfig, folder: Path
) -> list[str]:
    """Replay a share of the segments on each device; return why some failed."""
    shares = [
        list(part) for part in np.array_split(np.array(segments, object), len(config.devices))
    ]
    with _progress(folder, len(segments) * len(config.seeds)) as step:
        others = [
            (bag.path, bag.config, replace(config, devices=(device,)), share, folder)
            for device, share in zip(config.devices[1:], shares[1:])
        ]
        forks = multiprocessing.get_context('forkserver')
        forks.set_forkserver_preload(['mirage_model.engine.engine', __name__])
        with ProcessPoolExecutor(max(1, len(others)), mp_context=forks) as pool:
            jobs = [pool.submit(_replay_on_device, *other) for other in others]
            failures = replay(engine, bag, shares[0], config, folder, done=step)
            return failures + [failure for job in jobs for failure in job.result()]


def load_engine(config: ReplayConfig) -> ReplayEngine:
    """Load the engine of the first device."""
    from mirage_model.engine.engine import Engine

    return Engine.from_options(config, device=config.devices[0])


def _replay_on_device(
    path: Path, bag_config: BagConfig, config: ReplayConfig, share: list[Segment], folder: Path
) -> list[str]:
    engine = load_engine(config)
    return replay(engine, open_bag(path, bag_config, engine.describe()), share, config, folder)


@contextmanager
def _progress(folder: Path, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar over the finished segments in a folder, of all processes."""
    with tqdm(total=total, unit='segment') as bar:

        def step() -> None:
            bar.n = len(list(folder.glob('*.safetensors')))
            bar.refresh()

        step()
        yield step
        step()


def write_results(
    out: Path,
    about: dict,
    *,
    world_frame: str,
    left_out: Sequence[str],
    failures: Sequence[str],
) -> ReplayOutcome:
    """Write tables, bag, report and summary of all segments in ``out``.

    Raises ValueError where there are none.
    """
    paths = {}
    frames, rows, spans = [], [], []
    refinement: Counter[str] = Counter()
    reasons, errors = dict.fromkeys(left_out), dict.fromkeys(failures)
    for path in sorted((out / 'segments').glob('*.safetensors')):
        result = load(path)
        row = segment_row(result)
        paths[row['segment'], row['seed']] = path
        frames += frame_rows(result)
        rows.append(row)
        refinement += _without_numbers(result.refinement)
        spans.append((int(result.nanoseconds[0]), int(result.nanoseconds[-1])))
        reasons |= {f'not observed: {reason}': None for reason in result.rejected}
        errors |= {f'not observed: {reason}': None for reason in result.unreadable}
    left_out, failures = list(reasons), list(errors)
    if not rows:
        raise ValueError('segments: none was evaluated: ' + '; '.join([*failures, *left_out]))
    horizons = horizon_rows(frames)
    write_tables(out, {'frames': frames, 'segments': rows, 'horizons': horizons})
    results = zip(track_numbers(spans), map(load, paths.values()))
    write_bag(out / 'results', results, world_frame=world_frame)
    write_report(
        out / 'report.html',
        about=about,
        segments=rows,
        horizons=horizons,
        find=lambda row: load(paths[row['segment'], row['seed']]),
        left_out=left_out,
        failures=failures,
    )
    names = (
        *QUALITY,
        'visible',
        'last_frame_psnr_all',
        'warp_psnr_all',
        'better_than_warp',
    )
    summary = {
        'segments': len(rows),
        **{name: _mean([row[name] for row in rows]) for name in names},
        'left_out': left_out,
        'failures': failures,
        'cameras_found': refinement.pop('', 0),
        'cameras_kept': dict(refinement),
        **about,
    }
    write_json(out / 'summary.json', summary)
    return ReplayOutcome(out=out, results=len(rows), failures=failures, left_out=left_out)


def _without_numbers(reasons: Sequence[str]) -> Counter[str]:
    """Count reasons; those that differ in numbers alone count together."""
    return Counter(re.sub(r'\d+(\.\d+)?', 'N', reason) for reason in reasons)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def main(command: ReplayCommand) -> int:
    """Replay a bag from its file; return the exit status."""
    engine = load_engine(command.replay)
    return print_outcome(run(engine, command.bag, command.topics, command.replay, command.out))


def print_outcome(outcome: ReplayOutcome) -> int:
    """Print the outcome; return the exit status, 1 if something failed."""
    for line in outcome.left_out:
        print(f'left out: {line}')
    for line in outcome.failures:
        print(f'failed: {line}', file=sys.stderr)
    print(f'{outcome.results} results in {outcome.out}: report.html, results/, segments.csv')
    return 1 if outcome.failures else 0
