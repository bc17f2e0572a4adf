"""``python -m mirage_model.evaluation COMMAND``: what is measured, by name."""

from __future__ import annotations

import argparse
from importlib import import_module
import sys

COMMANDS = {
    'bench-memory': 'mirage_model.evaluation.benchmarks.memory_speed',
    'efficiency': 'mirage_model.evaluation.benchmarks.efficiency',
    'realestate10k': 'mirage_model.evaluation.protocols.realestate10k',
    'replay': 'mirage_model.evaluation.replay.command',
    'same-figures': 'mirage_model.evaluation.replay.compare',
    'sample-bag': 'mirage_model.evaluation.replay.sample_bag',
    'tables': 'mirage_model.evaluation.protocols.tables',
    'worldscore': 'mirage_model.evaluation.protocols.worldscore',
}
"""Modules with a ``main`` that takes the arguments and returns the exit status."""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog='python -m mirage_model.evaluation')
    parser.add_argument('command', choices=sorted(COMMANDS))
    command = parser.parse_args(arguments[:1]).command
    return import_module(COMMANDS[command]).main(arguments[1:])


if __name__ == '__main__':
    sys.exit(main())
