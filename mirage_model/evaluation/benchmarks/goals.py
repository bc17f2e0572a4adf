"""Metrics with goals, as the benchmarks print and write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
import os
from pathlib import Path
import platform
from typing import Literal

import torch

from mirage_model.io import write_json


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A value and the goal that it is compared with."""

    name: str
    value: float
    bound: Literal['at least', 'at most'] = 'at most'
    goal: float | None
    """None where no goal is set."""
    seconds: tuple[float, ...] = ()
    """Times that the value is computed from [s]."""

    @property
    def holds(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.bound == 'at least' else self.value <= self.goal


def report(metrics: list[Metric], out: Path, about: Mapping[str, object]) -> int:
    """Print the metrics and write them to a JSON file, with the machine and ``about``.

    Returns:
        0 if all goals hold, else 1: the exit status of a benchmark.
    """
    for metric in metrics:
        goal = 'no goal' if metric.goal is None else f'{metric.bound} {metric.goal:g}'
        verdict = '' if metric.goal is None else 'holds' if metric.holds else 'MISSED'
        seconds = ' against '.join(f'{value * 1e3:.2f} ms' for value in metric.seconds)
        line = f'{metric.value:10.3f}  {goal:13} {verdict:6}  {metric.name}'
        print(f'{line}  ({seconds})' if seconds else line)
    holds = all(metric.holds for metric in metrics)
    content = {
        'machine': {
            'processor': platform.processor() or platform.machine(),
            'cores': os.cpu_count(),
            'threads': torch.get_num_threads(),
            'load': os.getloadavg()[0],
        },
        **about,
        'metrics': [asdict(metric) | {'holds': metric.holds} for metric in metrics],
        'holds': holds,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, content)
    print(f'{out}: {"all goals hold" if holds else "a goal is missed"}')
    return 0 if holds else 1
