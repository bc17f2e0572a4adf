"""The soak runs briefly with an engine that answers at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from mirage_ros.tools.config import SoakConfig
from mirage_ros.tools.soak import run_soak
config = SoakConfig(minutes=0.25, pause=0.05)
run_soak(config, Path(sys.argv[1]), (sys.executable, sys.argv[2]))
"""


def test_soak_answers_each_request_once(tmp_path):
    engine = Path(__file__).resolve().parents[1] / 'instant_engine.py'
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, tmp_path, engine],
        env={**os.environ, 'INSTANT_STEP_SECONDS': '0.002'},  # a cancel finds a thousand steps
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['sent'] == summary['answered'] > 20, summary
    assert (summary['lost'], summary['crashes'], summary['answered_more_than_once']) == (0, 0, 0)
    assert summary['restored_after_kill'] and summary['exit_code'] == 0
    assert len(summary['rss_mib_at_quarters']) == 4
    assert {'done', 'rejected', 'cancelled'} <= set(summary['outcomes']), summary
