"""``mirage-replay BAG --config FILE --out DIR``: replay a recorded drive from its file, without ROS.

Writes tables, a bag of results and ``report.html``. Stopped and started again it goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
import math
import multiprocessing
from pathlib import Path
import shutil
import sys

import numpy as np
from tqdm import tqdm
import yaml

from mirage_model.data.bag import Bag, BagConfig
from mirage_model.data.sources import Layout
from mirage_model.evaluation.metrics import QUALITY
from mirage_model.evaluation.replay.replay import Imaginer, identity, load, replay
from mirage_model.evaluation.replay.report import write_report
from mirage_model.evaluation.replay.results_bag import lanes, write_bag
from mirage_model.evaluation.replay.segments import ReplayConfig, Segment, segments_of
from mirage_model.evaluation.replay.tables import (
    frame_rows,
    horizon_rows,
    segment_row,
    write_tables,
)
from mirage_model.evaluation.replay.truncated import intact
from mirage_model.interface import ModelInfo
from mirage_model.io import begin_run, write_json

HELP = {
    'image': 'topic of rectified images, raw or compressed',
    'camera_info': 'topic of their camera_info',
    'pose': 'topic of PoseStamped, Odometry or transforms (/tf)',
    'depth': 'topic of registered depth; empty: none',
    'world_frame': 'with transforms: the fixed frame',
    'transforms_static': 'with transforms: topic of the static ones',
    'base_from_camera': 'x y z and quaternion x y z w',
    'tolerance': 'seconds between an image and its depth',
    'pose_gap': 'seconds that a pose may be away',
    'horizon': 'seconds to imagine',
    'stride': 'seconds from one segment to the next',
    'observe': 'seconds before that may be observed; inf: all, 0: the one frame it starts from',
    'observe_every': 'seconds between observed frames',
    'seeds': 'of the random numbers; each segment is imagined with each',
    'steps': "denoising steps; 0: the model's own",
    'model_folder': 'folder with weights; empty: mirage-tiny',
    'devices': 'cpu, cuda, cuda:1 ...; several share the segments',
    'allow_unscaled_depth': 'without depth: let metres be a guess',
    'refine_cameras': 'find the cameras of imagined frames anew',
}
_LISTS = {'base_from_camera': float, 'seeds': int, 'devices': str}


def configure(path: Path | None, given: dict[str, object]) -> tuple[BagConfig, ReplayConfig]:
    """From a YAML file whose keys are those of `HELP`, and options that override it.

    Raises ValueError that names the file or the option and what is wrong with it.
    """
    values = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f'{path} is no configuration: {error}') from None
        if not isinstance(values, dict):
            raise ValueError(f'{path} is no configuration: names with values are needed')
    unknown = sorted(set(values) - set(HELP))
    if unknown:
        raise ValueError(f'{path}: {", ".join(unknown)}: not among {", ".join(HELP)}')
    values |= {name: value for name, value in given.items() if value is not None}
    missing = [name for name in ('image', 'camera_info', 'pose') if not values.get(name)]
    if missing:
        options = ', '.join(f'--{name.replace("_", "-")}' for name in missing)
        raise ValueError(f'which topics? {options} must be given, or stand in --config')
    return _made(BagConfig, values), _made(ReplayConfig, values)


def _made(cls: type, values: dict[str, object]):
    made = {}
    for field in fields(cls):
        if field.name not in values:
            continue
        value = values[field.name]
        kind = str if field.default is MISSING else type(field.default)
        if field.name in _LISTS:
            one, listed = _LISTS[field.name], value if isinstance(value, list | tuple) else [value]
            value = tuple(_as(one, item, field.name) for item in listed)
        else:
            value = _as(kind, value, field.name)
        made[field.name] = value
    return cls(**made)


def _as(kind: type, value: object, name: str):
    allowed = {float: (int, float), int: int, str: str, bool: bool}[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f'{name} must be {kind.__name__}, got {value!r}')
    return kind(value)


def add_options(parser: argparse.ArgumentParser) -> None:
    for cls in (BagConfig, ReplayConfig):
        for field in fields(cls):
            flag, text = f'--{field.name.replace("_", "-")}', HELP[field.name]
            if field.name in _LISTS:
                parser.add_argument(flag, nargs='*', type=_LISTS[field.name], help=text)
            elif isinstance(field.default, bool):
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            else:
                kind = str if field.default is MISSING else type(field.default)
                parser.add_argument(flag, type=kind, help=text)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a replay left: where, how many results, and why not more."""

    out: Path
    results: int
    failures: list[str]
    left_out: list[str]


def open_bag(path: Path, config: BagConfig, engine: ModelInfo) -> Bag:
    layout = Layout(
        height=engine.height, width=engine.width, rate=engine.frame_rate, least=1, frames=10**9
    )
    return Bag(path, config, layout)


def run(
    engine: Imaginer,
    path: Path,
    bag_config: BagConfig,
    config: ReplayConfig,
    out: Path,
    *,
    way: str = 'from the file',
) -> Outcome:
    """Replay what ``out`` does not hold yet, then write everything anew from all that it holds.

    With several devices ``engine`` is that of the first. What a bag cannot give is a failure, the rest is
    replayed. Raises ValueError for a bag or an option that cannot be used, and where nothing could be
    evaluated; what was evaluated is kept.
    """
    whole, damage = intact(path, out / 'intact')
    failures = [damage] if damage else []
    try:
        bag = open_bag(whole, bag_config, engine.describe())
        failures += bag.broken
        listing = bag.listing()
        only_lacking = [entry for entry in listing.left_out if entry[2] not in bag.broken]
        segments, left_out = segments_of(
            replace(listing, left_out=only_lacking), bag.stamps, bag.layout.rate, config
        )
        about = identity(bag, engine, config, way=way)
        begin_run(out / 'config.json', about)
        folder = out / 'segments'
        folder.mkdir(exist_ok=True)
        failures += _replay_all(engine, bag, segments, config, folder)
    except ValueError as error:
        raise ValueError('; '.join([str(error), *failures])) from None
    finally:
        shutil.rmtree(out / 'intact', ignore_errors=True)
    return finish(out, about, world_frame=bag.world_frame, left_out=left_out, failures=failures)


def _replay_all(
    engine: Imaginer, bag: Bag, segments: list[Segment], config: ReplayConfig, folder: Path
) -> list[str]:
    """Every device its share; return why segments could not be replayed."""
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
            jobs = [pool.submit(_elsewhere, *other) for other in others]
            failures = replay(engine, bag, shares[0], config, folder, done=step)
            return failures + [failure for job in jobs for failure in job.result()]


def load_engine(config: ReplayConfig) -> Imaginer:
    """The engine of the first device, in this process."""
    from mirage_model.engine.engine import Engine

    return Engine.from_folder(
        Path(config.model_folder) if config.model_folder else None,
        device=config.devices[0],
        allow_unscaled_depth=config.allow_unscaled_depth,
        refine_cameras=config.refine_cameras,
    )


def _elsewhere(
    path: Path, bag_config: BagConfig, config: ReplayConfig, share: list[Segment], folder: Path
) -> list[str]:
    engine = load_engine(config)
    return replay(engine, open_bag(path, bag_config, engine.describe()), share, config, folder)


@contextmanager
def _progress(folder: Path, total: int) -> Iterator[Callable[[], None]]:
    """A bar over the results that lie in the folder, whoever put them there."""
    with tqdm(total=total, unit='segment') as bar:

        def step() -> None:
            bar.n = len(list(folder.glob('*.safetensors')))
            bar.refresh()

        step()
        yield step
        step()


def finish(
    out: Path,
    about: dict,
    *,
    world_frame: str,
    left_out: Sequence[str],
    failures: Sequence[str],
) -> Outcome:
    """Tables, bag, report and summary of all results in ``out``.

    Raises ValueError where there are none.
    """
    paths = {}
    frames, rows, spans = [], [], []
    left_out, failures = dict.fromkeys(left_out), dict.fromkeys(failures)
    for path in sorted((out / 'segments').glob('*.safetensors')):
        replayed = load(path)
        row = segment_row(replayed)
        paths[row['segment'], row['seed']] = path
        frames += frame_rows(replayed)
        rows.append(row)
        spans.append((int(replayed.nanoseconds[0]), int(replayed.nanoseconds[-1])))
        left_out |= {f'not observed: {reason}': None for reason in replayed.refused}
        failures |= {f'not observed: {reason}': None for reason in replayed.unreadable}
    left_out, failures = list(left_out), list(failures)
    if not rows:
        raise ValueError('nothing could be evaluated: ' + '; '.join([*failures, *left_out]))
    horizons = horizon_rows(frames)
    write_tables(out, {'frames': frames, 'segments': rows, 'horizons': horizons})
    results = zip(lanes(spans), map(load, paths.values()))
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
    names = (*QUALITY, 'visible', 'held_psnr_all')
    summary = {
        'segments': len(rows),
        **{name: _mean([row[name] for row in rows]) for name in names},
        'left_out': left_out,
        'failures': failures,
        **about,
    }
    write_json(out / 'summary.json', summary)
    return Outcome(out=out, results=len(rows), failures=failures, left_out=left_out)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='mirage-replay', description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path, help='folder of the bag, MCAP or sqlite3, or one file')
    parser.add_argument('--config', type=Path, help='YAML with these options by name')
    parser.add_argument('--out', type=Path, default=Path('out/replay/file'))
    add_options(parser)
    given = vars(parser.parse_args(arguments))
    bag, config, out = given.pop('bag'), given.pop('config'), given.pop('out')
    try:
        bag_config, replay_config = configure(config, given)
        outcome = run(load_engine(replay_config), bag, bag_config, replay_config, out)
    except (ValueError, ImportError) as error:
        print(f'mirage-replay: {error}', file=sys.stderr)
        return 1
    return say(outcome)


def say(outcome: Outcome) -> int:
    """Print what a replay left; the exit status is 1 if something failed."""
    for line in outcome.left_out:
        print(f'left out: {line}')
    for line in outcome.failures:
        print(f'failed: {line}', file=sys.stderr)
    print(f'{outcome.results} results in {outcome.out}: report.html, results/, segments.csv')
    return 1 if outcome.failures else 0


if __name__ == '__main__':
    sys.exit(main())
