"""``python -m mirage_model.evaluation COMMAND``: what is measured, by name."""

from __future__ import annotations

import argparse
from importlib import import_module
import sys

COMMANDS = {
    'bench-memory': 'mirage_model.evaluation.bench_memory',
    'efficiency': 'mirage_model.evaluation.efficiency',
    'realestate10k': 'mirage_model.evaluation.realestate10k',
    'replay': 'mirage_model.evaluation.replay_command',
    'same-figures': 'mirage_model.evaluation.same_figures',
    'sample-bag': 'mirage_model.evaluation.sample_bag',
    'tables': 'mirage_model.evaluation.paper_tables',
    'worldscore': 'mirage_model.evaluation.worldscore',
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
