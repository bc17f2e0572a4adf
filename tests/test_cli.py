"""The command line finds its commands, reads its options and ends with the right status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from mirage_model import cli
from mirage_model.cli import COMMANDS, Command, main
from mirage_model.io import sentence
from mirage_model.model.checkpoint import checked_device

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


@pytest.mark.parametrize(
    ('out', 'text'),
    [
        ('file/results', 'out: .*file/results lies below .*file, which is a file'),
        ('file', 'out: .*file is a file, name a folder'),
        ('folder.json', 'out: .*folder.json is a folder, name a file'),
        ('locked/results', 'out: .*locked cannot be written to'),
    ],
)
def test_output_that_cannot_be_written_is_named_first(out, text, tmp_path, monkeypatch, capsys):
    """The error comes before the function is imported, and leaves no file."""
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder.json').mkdir()
    (tmp_path / 'locked').mkdir()
    access = os.access
    # the tests may run as root, whom no permission stops
    monkeypatch.setattr(os, 'access', lambda p, mode: p != tmp_path / 'locked' and access(p, mode))
    command = Command(COMMANDS['report sample-bag'].config, 'nowhere:nothing', '')
    monkeypatch.setitem(COMMANDS, 'report sample-bag', command)
    before = sorted(tmp_path.rglob('*'))
    assert main(['report', 'sample-bag', '--out', str(tmp_path / out)]) == 1
    assert re.fullmatch(f'mirage report sample-bag: {text}.*\n', capsys.readouterr().err)
    assert sorted(tmp_path.rglob('*')) == before


def test_sentences_are_short_and_name_the_file():
    assert len(sentence(ValueError('x' * 700_000))) < 1100
    assert sentence(ValueError('two\nlines')) == 'two lines'
    assert sentence(PermissionError(13, 'Permission denied', '/a')) == '/a: Permission denied'


INTERRUPTED = """
import signal, sys, time
from mirage_model import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def work(config):
    print('begun', flush=True)
    time.sleep(1000)

cli.work = work
config = cli.COMMANDS['bench memory'].config
sys.exit(cli.run(cli.Command(config, 'mirage_model.cli:work', ''), [], prog='mirage bench'))
"""


def test_interrupt_ends_with_130():
    command = [sys.executable, '-c', INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'begun\n'
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b'mirage bench: interrupted\n'


@pytest.mark.parametrize('name', ['cuda:99', 'gpu', 'cpu:x'])
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match=f'device: {name!r} .*use cpu'):
        checked_device(name)
