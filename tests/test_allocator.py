"""Page faults are counted in processes of their own, since the setting holds for a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from mirage_model.allocator import keep_freed_pages
if sys.argv[1] == 'kept':
    assert keep_freed_pages()
def chunk():
    return sum(float(torch.ones(12_000_000).sum()) for _ in range(4))
for _ in range(3):
    chunk()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
chunk()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kind: str) -> int:
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, kind], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
def test_second_chunk_faults_no_pages_in():
    assert faults('kept') < faults('default') / 10
