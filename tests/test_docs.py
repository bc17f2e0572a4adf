"""The commands of README and docs have options that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import re
import shlex
from string import Template

import pytest

from mirage_model import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PROGRAMS = re.compile(r'(?:mirage|accelerate launch .*-m mirage_model\.cli) (.*)')


def commands(page: Path) -> Iterator[str]:
    """Yield the words after ``mirage`` of each command in the page's shell blocks, outside of
    loops over a variable."""
    variables = {name: name.lower() for name in ('DATA', 'RUNS', 'WAN', 'LSM', 'DEPTH')}
    for block in re.findall(r'^```sh\n(.*?)^```', page.read_text(), flags=re.S | re.M):
        for line in re.split(r'\n|&& ', block.replace('\\\n', ' ')):
            line = Template(line.strip()).safe_substitute(variables)
            if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            elif '$' not in line and (command := PROGRAMS.fullmatch(line)):
                yield command[1]


@pytest.mark.parametrize(
    'command', dict.fromkeys(command for page in PAGES for command in commands(page))
)
def test_options_of_documented_commands_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    name = cli._name(words)
    cli.parse(cli._load(cli.COMMANDS[name].config), words[len(name.split()) :], prog='mirage')
