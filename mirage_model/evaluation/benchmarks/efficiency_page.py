"""Rows of the efficiency benchmark, and the tables, plots and page made of them."""

from __future__ import annotations

from collections.abc import Callable
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
import statistics

from matplotlib.figure import Figure

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One chunk of one run of a memory.

    Seconds are for the whole chunk, bytes are held after it.
    """

    memory: str
    run: int
    chunk: int
    """Counted from 1."""
    frames: int
    read: float
    """Reading what the model is conditioned on [s]."""
    masks: float
    """Reading the mask of each frame [s]."""
    write: float
    """Writing the chunk [s]."""
    rest: float
    """Everything else [s]."""
    nbytes: int
    index_nbytes: int
    points: int
    """Points in the memory."""

    @property
    def total(self) -> float:
        return self.read + self.masks + self.write + self.rest


Sample = Callable[[list[Row], int], float]
"""A metric of one run of a memory after a number of chunks."""
SAMPLES: dict[str, Sample] = {
    'read [ms a frame]': lambda rows, at: 1e3 * rows[at - 1].read / rows[at - 1].frames,
    'write [ms a frame]': lambda rows, at: 1e3 * rows[at - 1].write / rows[at - 1].frames,
    'end to end [ms a frame]': lambda rows, at: (
        1e3 * sum(row.total for row in rows[:at]) / sum(row.frames for row in rows[:at])
    ),
    'points [MiB]': lambda rows, at: rows[at - 1].nbytes / MIB,
    'points and index [MiB]': lambda rows, at: (
        (rows[at - 1].nbytes + rows[at - 1].index_nbytes) / MIB
    ),
}
PLOTTED = tuple(SAMPLES)[:4]
GOALS = {'read [ms a frame]': 1000.0, 'points [MiB]': 55.0}
"""Smallest expected ratio of the RGB cloud to the latent memory."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The rows of one size; ``composed`` where no rollout was run whole."""

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
        """Return the metric of each run."""
        runs: dict[int, list[Row]] = {}
        for row in self.rows:
            if row.memory == memory:
                runs.setdefault(row.run, []).append(row)
        return [sample(sorted(rows, key=lambda row: row.chunk), at) for rows in runs.values()]


def table(results: Results) -> str:
    """Return medians with the lowest and highest of the runs, at the first and the last length."""
    last = results.chunks
    lengths = {'points [MiB]': (1, min(5, last), last), 'points and index [MiB]': (last,)}
    columns = [
        (f'{name}, chunk {at}', sample, at)
        for name, sample in SAMPLES.items()
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
    """Format with three digits, or all digits before the point."""
    return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'


def ratio_table(results: Results) -> str:
    """Return the RGB cloud over the latent memory; goals are for the last chunk."""
    last = results.chunks
    lengths = sorted({1, min(5, last), last})
    titles = [f'chunk {at}' for at in lengths]
    lines = [
        f'| RGB cloud / latent | {" | ".join(titles)} | expected |',
        '|---|' + '---|' * (len(lengths) + 1),
    ]
    for name, sample in SAMPLES.items():
        ratios = [
            statistics.median(results.values('rgb_cloud', sample, at))
            / statistics.median(results.values('latent', sample, at))
            for at in lengths
        ]
        verdict = ''
        if name in GOALS and results.composed:
            verdict = 'holds' if ratios[-1] >= GOALS[name] else 'does not hold'
            verdict = f'at least {number(GOALS[name])}: {verdict}'
        cells = ' | '.join(number(ratio) for ratio in ratios)
        lines.append(f'| {name.split(" [")[0]} | {cells} | {verdict} |')
    return '\n'.join(lines)


def write_csv(path: Path, results: Results) -> None:
    with path.open('w', newline='') as file:
        names = [field.name for field in fields(Row)]
        writer = csv.DictWriter(file, ['size', 'composed', *names], lineterminator='\n')
        writer.writeheader()
        for row in results.rows:
            writer.writerow({'size': results.size, 'composed': results.composed} | asdict(row))


def plot(path: Path, results: Results) -> None:
    """Draw the median of the runs over the length of the rollout, and their spread."""
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    lengths = range(1, results.chunks + 1)
    for axes, name in zip(figure.subplots(2, 2).flat, PLOTTED, strict=True):
        for memory in results.memories:
            runs = [results.values(memory, SAMPLES[name], at) for at in lengths]
            if any(min(values) <= 0 for values in runs):  # zero has no place on a log axis
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


def section(results: Results) -> str:
    described = ', '.join(f'{name} {value}' for name, value in results.machine.items())
    name = f'efficiency/{results.size}'
    return '\n\n'.join(
        (
            f'## {results.size}',
            results.about,
            f'Machine: {described}.',
            table(results),
            ratio_table(results),
            f'![{", ".join(PLOTTED)} against the length of the rollout]({name}.png)',
            f'[All chunks of all runs]({name}.csv)',
        )
    )


def write_page(folder: Path, every: list[Results]) -> None:
    """Write the sections of efficiency.md and, in efficiency/, a CSV and a plot for each size.

    The text before the first section is kept.
    """
    data = folder / 'efficiency'
    data.mkdir(parents=True, exist_ok=True)
    for results in every:
        write_csv(data / f'{results.size}.csv', results)
        plot(data / f'{results.size}.png', results)
    page = folder / 'efficiency.md'
    introduction = page.read_text().partition('\n## ')[0] if page.exists() else ''
    page.write_text('\n'.join([introduction, *(section(results) + '\n' for results in every)]))
