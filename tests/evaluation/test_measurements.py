"""Pages of measurements name the weights that they were measured with."""

from __future__ import annotations

import hashlib
from pathlib import Path
import re

import pytest

from mirage_model.model.checkpoint import EMBEDDED, load_model_info

PAGES = Path(__file__).resolve().parents[2] / 'docs' / 'measurements'


@pytest.mark.parametrize('name', sorted(page.name for page in PAGES.glob('*.md')))
def test_page_names_date_commit_and_weights(name):
    head = (PAGES / name).read_text().split('\n## ')[0]
    assert re.search(r'Measured on \d{4}-\d\d-\d\d', head)
    assert re.search(r'commits? [0-9a-f]{7}', head)
    found = set(re.findall(r'\b[0-9a-f]{64}\b', head))
    vae = EMBEDDED / 'vae' / 'diffusion_pytorch_model.safetensors'
    shipped = {load_model_info(EMBEDDED).sha256, hashlib.sha256(vae.read_bytes()).hexdigest()}
    assert found or 'measured without weights' in head
    assert found <= shipped or 'measured with other weights' in head
