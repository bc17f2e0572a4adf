"""Folders of results: what they are results of, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path


def as_json(content: object, *, indent: int | None = 1) -> str:
    """JSON has no number for what is not known: NaN becomes null, and an infinity its name."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def write_json(path: Path, content: object) -> None:
    """Write aside, then rename: a file is whole or absent."""
    aside = path.with_suffix('.part')
    aside.write_text(as_json(content) + '\n')
    os.replace(aside, path)


def claim(out: Path, about: dict, name: str = 'segments') -> Path:
    """The folder of results by that name within ``out``, which is held to what they are ``about``.

    Raises ValueError where it holds other results.
    """
    folder, path = out / name, out / 'config.json'
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if other := differing(json.loads(path.read_text()), json.loads(as_json(about))):
            raise ValueError(
                f'{out} holds results that differ in {", ".join(other)}: choose another --out, or remove it'
            )
    write_json(path, about)
    return folder


def differing(was: dict, now: dict) -> list[str]:
    """Names under which two descriptions hold another value, or only one of them holds any."""
    return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))


def _plain(content: object) -> object:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content
