"""Figures with their goals: how commands that check the memory say what holds."""

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
class Figure:
    """A figure with its goal, None where none is set; ``seconds`` are those that it is made of."""

    name: str
    value: float
    bound: Literal['at least', 'at most'] = 'at most'
    goal: float | None
    seconds: tuple[float, ...] = ()

    @property
    def holds(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.bound == 'at least' else self.value <= self.goal


def report(figures: list[Figure], out: Path, about: Mapping[str, object]) -> int:
    """Print the figures, write them with what is said ``about`` them to a JSON file.

    Returns 0 if every goal holds, else 1: what a command exits with.
    """
    for figure in figures:
        goal = 'no goal' if figure.goal is None else f'{figure.bound} {figure.goal:g}'
        verdict = '' if figure.goal is None else 'holds' if figure.holds else 'MISSED'
        seconds = ' against '.join(f'{value * 1e3:.2f} ms' for value in figure.seconds)
        line = f'{figure.value:10.3f}  {goal:13} {verdict:6}  {figure.name}'
        print(f'{line}  ({seconds})' if seconds else line)
    holds = all(figure.holds for figure in figures)
    content = {
        'machine': {
            'processor': platform.processor() or platform.machine(),
            'cores': os.cpu_count(),
            'threads': torch.get_num_threads(),
            'load': os.getloadavg()[0],
        },
        **about,
        'figures': [asdict(figure) | {'holds': figure.holds} for figure in figures],
        'holds': holds,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, content)
    print(f'{out}: {"every goal holds" if holds else "a goal is missed"}')
    return 0 if holds else 1
