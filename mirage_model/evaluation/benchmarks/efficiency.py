"""What the memories cost: ``mirage bench efficiency``.

Rollouts of the embedded model are run whole with every memory in turn; at the size of
Wan2.2-TI2V-5B they are composed of single timings. Every finished timing is kept in a file, so
that what was stopped goes on where it was; remove the files to measure again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
import json
from pathlib import Path

from mirage_model.evaluation.benchmarks.efficiency_large import Setting, composed, timings
from mirage_model.evaluation.benchmarks.efficiency_report import (
    Results,
    expectations,
    table,
    write_page,
)
from mirage_model.evaluation.benchmarks.efficiency_rows import Row, machine
from mirage_model.evaluation.benchmarks.efficiency_tiny import run_whole
from mirage_model.evaluation.config import EfficiencyConfig
from mirage_model.evaluation.rollout_quality import trajectory
from mirage_model.io import write_json
from mirage_model.model.checkpoint import EMBEDDED, load_model

TRAJECTORY = 5
"""Of the manifest of `tiny`: out and back, which moves in every chunk, where a drive forward ends at a
wall."""


def once(path: Path, work: Callable[[], object]) -> object:
    """What the file holds, or else what the work returns, which is put there."""
    if not path.exists():
        print(f'{path.stem}: now', flush=True)
        measured = {'machine': machine(), 'value': work()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured)
    return json.loads(path.read_text())


def one_machine(folder: Path, machines: list[dict]) -> dict:
    """The machine of all timings. Raises ValueError where there were several."""
    alike = [{key: value for key, value in each.items() if key != 'load'} for each in machines]
    if any(each != alike[0] for each in alike):
        raise ValueError(f'{folder} holds timings of several machines: {alike}')
    return alike[0]


def measure_whole(folder: Path, model_folder: Path, chunks: int, runs: int) -> Results:
    """Rollouts of a model folder, run whole: every run takes all memories in one go."""
    model = load_model(model_folder)
    config = model.config

    def work(run: int) -> list[dict]:
        clip = trajectory(TRAJECTORY, chunks * model.new_frames + 1)
        return [asdict(row) for rows in run_whole(model, clip, run=run) for row in rows]

    folder = folder / f'{config.name}-{model.sha256[:12]}-{chunks}'
    held = [once(folder / f'run-{run}.json', partial(work, run)) for run in range(runs)]
    about = (
        f'{config.name} ({model.sha256[:12]}), {config.height}x{config.width} frames, '
        f'{model.codec.channels} channels, {config.steps} steps, its own weights and perception, every rollout run whole, '
        f'{runs} runs of all memories in turn, along number {TRAJECTORY} of the drives of `mirage_model.evaluation.rollout_quality`, out and back.'
    )
    return Results(
        size=config.name,
        about=about,
        machine=one_machine(folder, [each['machine'] for each in held]),
        composed=False,
        rows=[Row(**row) for each in held for row in each['value']],
    )


def measure_parts(
    folder: Path, setting: Setting, chunks: int, runs: int, only: list[str] | None
) -> Results | None:
    """What rollouts at a large size are composed of, and the rollouts if nothing is missing."""
    folder = folder / f'{setting.name}-{chunks}'
    done, missing, machines = {}, [], []
    for name, work in timings(setting, chunks, runs).items():
        path = folder / f'{name}.json'
        if not path.exists() and only is not None and name.rsplit('-', 1)[0] not in only:
            missing.append(name)
            continue
        held = once(path, work)
        done[name] = held['value']
        machines.append(held['machine'])
    if missing:
        print(f'{setting.name}: still to be timed: {", ".join(missing)}')
        return None
    about = (
        f'**Composed, not run.** {setting.height}x{setting.width} frames, chunks of {setting.chunk_frames}. The memories '
        f'were run whole on {chunks} chunks of a drive down a corridor, {setting.step * setting.new_frames:g} m a chunk, with exact depth. '
        'One encode of a frame and the decoding of the first and of a further latent frame were timed with the real architecture of the '
        f'codec and random weights, {runs} runs each; their times are added as often as a rollout needs them. The denoiser, which all '
        'memories share, and what estimates depth are left out.'
    )
    return Results(
        size=setting.name,
        about=about,
        machine=one_machine(folder, machines),
        composed=True,
        rows=composed(setting, done, chunks, runs),
    )


def main(config: EfficiencyConfig, setting: Setting = Setting()) -> int:
    """Take the timings that are missing and write the page; return 1 where some still are."""
    known = {name.rsplit('-', 1)[0] for name in timings(setting, config.chunks, config.runs)}
    if unknown := set(config.only) - known:
        raise ValueError(f'only: {sorted(unknown)}: not among {", ".join(sorted(known))}')
    every = []
    if 'embedded' in config.sizes:
        model = config.model or EMBEDDED
        every.append(measure_whole(config.out, model, config.chunks, config.runs))
    if 'wan22_5b' in config.sizes:
        results = measure_parts(
            config.out, setting, config.chunks, config.runs, list(config.only) or None
        )
        every += [results] if results else []
    for results in every:
        print(f'\n{results.size}\n{table(results)}\n\n{expectations(results)}')
    if len(every) < 2:
        print('\nthe page is written when both sizes are timed and asked for at once')
        return 0 if len(every) == len(config.sizes) else 1
    write_page(config.docs, every)
    print(f'\n{config.docs / "efficiency.md"}')
    return 0
