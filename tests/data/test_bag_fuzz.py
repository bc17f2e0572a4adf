"""Whole recordings at random as bags: what is read is right, or a sentence names what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
import re
import tempfile

from hypothesis import HealthCheck, given, settings
from recordings import COUNT, mistakes, read_bag, recordings

EXAMPLES = int(os.environ.get('MIRAGE_FUZZ', '200'))


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(recordings())
def test_recordings_are_right_or_named(drawn):
    recording, plugin, nameless, qos = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'bag'
        found, said = read_bag(recording, path, plugin, nameless=nameless, qos=qos)
    wrong = mistakes(found) + ['images are missing'] * (len(found) != COUNT)
    if wrong:
        assert any(re.search(w, '; '.join(said)) for w in recording.words), (wrong, said)
