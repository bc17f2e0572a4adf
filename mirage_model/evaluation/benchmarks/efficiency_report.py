"""Rows of rollouts as CSV, picture and tables."""

from __future__ import annotations

from collections.abc import Callable
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
import statistics

from matplotlib.figure import Figure

from mirage_model.evaluation.benchmarks.efficiency_rows import Row

MIB = 2**20

Sample = Callable[[list[Row], int], float]
"""A figure of one run of a memory, after so many chunks."""

SAMPLES: dict[str, Sample] = {
    'read, ms a frame': lambda rows, at: 1e3 * rows[at - 1].read / rows[at - 1].frames,
    'write, ms a frame': lambda rows, at: 1e3 * rows[at - 1].write / rows[at - 1].frames,
    'end to end, ms a frame': lambda rows, at: (
        1e3 * sum(row.total for row in rows[:at]) / sum(row.frames for row in rows[:at])
    ),
    'held, MiB': lambda rows, at: rows[at - 1].nbytes / MIB,
}
"""What the figure shows: the first two and the last of a chunk, the third of the rollout up to it."""

FIGURES = SAMPLES | {
    'held with what finds it, MiB': lambda rows, at: (
        (rows[at - 1].nbytes + rows[at - 1].index_nbytes) / MIB
    ),
}
"""What the tables show."""

GOALS = {'read, ms a frame': 1000.0, 'held, MiB': 55.0}
"""How many times those of the RGB cloud are expected to be those of the latent memory, at least."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The rows of one size. ``composed`` says that no rollout was run whole."""

    size: str
    about: str
    machine: dict
    composed: bool
    rows: list[Row]

    @property
    def memories(self) -> list[str]:
        return list(dict.fromkeys(row.memory for row in self.rows))

    @property
    def chunks(self) -> int:
        return max(row.chunk for row in self.rows)

    def values(self, memory: str, sample: Sample, at: int) -> list[float]:
        """The figure of every run."""
        runs: dict[int, list[Row]] = {}
        for row in self.rows:
            if row.memory == memory:
                runs.setdefault(row.run, []).append(row)
        return [sample(sorted(rows, key=lambda row: row.chunk), at) for rows in runs.values()]


def write_csv(path: Path, results: Results) -> None:
    with path.open('w', newline='') as file:
        names = [field.name for field in fields(Row)]
        writer = csv.DictWriter(file, ['size', 'composed', *names], lineterminator='\n')
        writer.writeheader()
        for row in results.rows:
            writer.writerow({'size': results.size, 'composed': results.composed} | asdict(row))


def plot(path: Path, results: Results) -> None:
    """The median of the runs over the length of the rollout, and their spread."""
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    lengths = range(1, results.chunks + 1)
    for axes, (name, sample) in zip(figure.subplots(2, 2).flat, SAMPLES.items(), strict=True):
        for memory in results.memories:
            runs = [results.values(memory, sample, at) for at in lengths]
            if any(min(values) <= 0 for values in runs):  # nothing is held: no place on the axis
                continue
            (line,) = axes.plot(lengths, [statistics.median(v) for v in runs], label=memory)
            low, high = [min(v) for v in runs], [max(v) for v in runs]
            axes.fill_between(lengths, low, high, color=line.get_color(), alpha=0.2)
        axes.set(title=name, xlabel='chunks')
        if name.startswith('end to end'):
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale('log')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3, which='both')
        if axes.get_subplotspec().is_first_row():
            handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc='outside lower center', ncols=len(results.memories))
    how = 'composed of single timings, no denoiser' if results.composed else 'run whole'
    figure.suptitle(f'{results.size}, {how}; {results.machine["processor"]}')
    figure.savefig(path, dpi=120)


def table(results: Results) -> str:
    """Medians with the lowest and highest of the runs, at the first and the last length."""
    last = results.chunks
    lengths = {'held, MiB': (1, min(5, last), last), 'held with what finds it, MiB': (last,)}
    columns = [
        (f'{name}, chunk {at}', sample, at)
        for name, sample in FIGURES.items()
        for at in dict.fromkeys(lengths.get(name, (1, last)))
    ]
    lines = ['| memory | ' + ' | '.join(title for title, _, _ in columns) + ' |']
    lines.append('|---|' + '---|' * len(columns))
    for memory in results.memories:
        cells = [spread(results.values(memory, sample, at)) for _, sample, at in columns]
        lines.append(f'| {memory} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def spread(values: list[float]) -> str:
    middle, low, high = (number(of(values)) for of in (statistics.median, min, max))
    return middle if low == high else f'{middle} ({low} to {high})'


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'


def expectations(results: Results) -> str:
    """The RGB cloud over the latent memory; what is expected is of the last chunk."""
    last = results.chunks
    lengths = sorted({1, min(5, last), last})
    titles = [f'chunk {at}' for at in lengths]
    lines = [
        f'| RGB cloud / latent | {" | ".join(titles)} | expected |',
        '|---|' + '---|' * (len(lengths) + 1),
    ]
    for name, sample in FIGURES.items():
        times = [
            statistics.median(results.values('rgb_cloud', sample, at))
            / statistics.median(results.values('latent', sample, at))
            for at in lengths
        ]
        goal = GOALS.get(name)
        verdict = ''
        if goal is not None and results.composed:
            holds = 'holds' if times[-1] >= goal else 'does not hold'
            verdict = f'at least {number(goal)}: {holds}'
        ratios = ' | '.join(number(ratio) for ratio in times)
        lines.append(f'| {name.split(",")[0]} | {ratios} | {verdict} |')
    return '\n'.join(lines)


def section(results: Results) -> str:
    machine = ', '.join(f'{name} {value}' for name, value in results.machine.items())
    name = f'efficiency-{results.size}'
    return '\n\n'.join(
        (
            f'## {results.size}',
            results.about,
            f'Machine: {machine}.',
            table(results),
            expectations(results),
            f'![{", ".join(SAMPLES)} against the length of the rollout]({name}.png)',
            f'[Every chunk of every run]({name}.csv)',
        )
    )


INTRODUCTION = """# What memories cost

`make bench-efficiency` wrote this page and all its figures. The memories are those of [memory.md](memory.md), on one machine and
one trajectory. Each figure is the median of the runs, with the lowest and the highest in brackets.

- **Read**: what the model is shown, at the cameras of the latent frames. The RGB cloud renders and encodes one frame for each of them; the published
  models render and encode every frame.
- **Write**: what a chunk adds. Memories of latents are given those that were denoised, so that nothing is encoded for them; the context of the next
  chunk is encoded whatever the memory, and counts as no writing.
- **End to end**: all of the chunks so far by the number of their frames, with the masks of every frame.
- **Held**: bytes of the cells. What finds them, a hash table or a directory, comes with them in the last column, and is in the CSV as `index_nbytes`.

A point of the RGB cloud takes 23 bytes, a cell of c channels 2c + 29. So a frame of 16x16 pixels a cell is 5,888 / 125 = 47 times smaller at 48 channels, and were a
cell no more than its latents and a position in float32 it would be 54.5 times: the rest of a cell is its depth, time, confidence, size and number.

Retrieved views are kept as latents and moved to the cameras; where they are handed to the denoiser as further frames, as published, it takes longer
for each, which is not seen here. Read, write and held are of the chunk named, each a frame of the new frames.

Most of the time from end to end goes into denoising and decoding, which all share: where the brackets of two memories overlap, which one is faster is not known.
"""


def write_page(folder: Path, every: list[Results]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for results in every:
        write_csv(folder / f'efficiency-{results.size}.csv', results)
        plot(folder / f'efficiency-{results.size}.png', results)
    page = '\n'.join([INTRODUCTION, *(section(results) + '\n' for results in every)])
    (folder / 'efficiency.md').write_text(page)
