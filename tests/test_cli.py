"""The command line finds its commands, reads its options and ends with the right status."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mirage_model import cli
from mirage_model.cli import COMMANDS, Command, main

PROGRAM = """
import sys
from mirage_model.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
assert 'torch' not in sys.modules, 'torch was imported'
sys.exit(status)
"""


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_imports_no_torch(name):
    words = [sys.executable, '-c', PROGRAM, *name.split(), '--help']
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'usage: mirage {name} ' in done.stdout


@pytest.mark.parametrize('name', COMMANDS)
def test_function_of_a_command_exists(name):
    if not COMMANDS[name].function.startswith('mirage_ros'):  # needs ROS
        assert callable(cli._load(COMMANDS[name].function))


@pytest.mark.parametrize(
    ('words', 'status', 'text'),
    [
        (['--help'], 0, 'bench memory'),
        (['bench', '--help'], 0, 'bench memory'),
        ([], 2, 'is not a command'),
        (['bench'], 2, "'bench' is not a command"),
        (['bench', 'speed'], 2, "'bench speed' is not a command"),
    ],
)
def test_commands_are_listed(words, status, text, capsys):
    assert main(words) == status
    assert text in ''.join(capsys.readouterr())


def test_unknown_option_ends_with_2(capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['bench', 'memory', '--scael', '1'])
    assert '--scael' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'status', 'text'),
    [
        (ValueError('scale: 0, must be positive'), 1, 'mirage bench memory: scale: 0'),
        (ImportError('replay needs rosbags'), 1, 'mirage bench memory: replay needs rosbags'),
        (KeyboardInterrupt(), 130, 'mirage bench memory: interrupted'),
    ],
)
def test_errors_are_one_sentence(error, status, text, monkeypatch, capsys):
    def fail(config):
        raise error

    monkeypatch.setattr(cli, 'fail', fail, raising=False)
    command = Command(COMMANDS['bench memory'].config, 'mirage_model.cli:fail', '')
    monkeypatch.setitem(COMMANDS, 'bench memory', command)
    assert main(['bench', 'memory']) == status
    assert capsys.readouterr().err.strip().startswith(text)


def test_lists_are_taken_in_yaml_form():
    config = cli.parse(
        cli._load(COMMANDS['replay'].config),
        ['bag', '--image=/a', '--camera-info=/b', '--pose=/c', '--seeds', '[3, 4]'],
        prog='mirage replay',
    )
    assert config.replay.seeds == (3, 4)
