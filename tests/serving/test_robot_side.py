"""The robot's side of a remote engine runs without torch."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
import tomllib

from servers import ENGINE_PACKAGES, WITHOUT_ENGINE, ServedEngine, serving

ROOT = Path(__file__).resolve().parents[2]


def test_a_client_needs_no_torch():
    program = f"""{WITHOUT_ENGINE}
from servers import request, view
from mirage_model.serving.remote import RemoteEngine
engine = RemoteEngine('grpc://127.0.0.1:' + sys.argv[1])
engine.seed(view(size=(480, 640)))
print(len(list(engine.imagine(request(2)))))
engine.close()
"""
    with serving(ServedEngine) as server:
        run = subprocess.run(
            [sys.executable, '-c', program, str(server.port)], capture_output=True, text=True
        )
    assert run.stdout == '2\n', run.stderr


def test_the_plain_installation_brings_no_torch():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    names = {line.split('>')[0] for line in project['dependencies']}
    assert not names & set(ENGINE_PACKAGES)
    extra = {line.split('>')[0] for line in project['optional-dependencies']['engine']}
    assert extra == set(ENGINE_PACKAGES)
