"""Write files whole or not at all, read and write strict JSON, check that a run is resumed
unchanged, and put an error into a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
import hashlib
import json
import math
import os
from pathlib import Path
import shutil

FILES = ('.csv', '.html', '.json', '.png', '.rrd', '.safetensors', '.yaml')
"""Suffixes of the files that commands write."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file or folder, and rename it to ``path`` once it is written.

    A file or folder of that name is replaced. What an interrupted run left is removed.
    """
    part = path.with_suffix('.part')
    _remove(part)
    yield part
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(part, path)


def check_output(path: Path, name: str) -> None:
    """Raise ValueError where nothing could be written at a path; nothing is created.

    A path with the suffix of a file is one, others are folders.
    """
    is_file = path.suffix in FILES
    if path.exists() and path.is_dir() == is_file:
        kinds = ('a folder, name a file') if is_file else ('a file, name a folder')
        raise ValueError(f'{name}: {path} is {kinds}')
    place = path if path.is_dir() else path.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f'{name}: {path} lies below {place}, which is a file, name a folder')
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f'{name}: {place} cannot be written to, name another place')


def shortened(text: str, length: int = 1000) -> str:
    """Return a text with the middle left out where it is longer than ``length`` characters."""
    if len(text) <= length:
        return text
    left_out = len(text) - length
    return f'{text[: length // 2]} [{left_out} characters left out] {text[-(length // 2) :]}'


def sentence(error: BaseException) -> str:
    """Return an error's text in one line, with the file and the system's reason of an OSError."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f'{error.filename}: {error.strerror}'
    return shortened(' '.join(text.split()) or type(error).__name__)


def remove_folder(folder: Path) -> None:
    """Rename a folder, then delete it: no reader finds half of it."""
    part = folder.with_suffix('.part')
    _remove(part)
    os.replace(folder, part)
    shutil.rmtree(part)


def as_json(content: object, *, indent: int | None = 1) -> str:
    """Return strict JSON: NaN becomes null, an infinity becomes the string 'inf' or '-inf'."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        ValueError: The file is missing or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f'{path}: the file is missing') from None
    except ValueError as error:
        raise ValueError(f'{path}: not valid JSON, {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path}: holds a {type(content).__name__}, a JSON object is needed')
    return content


def write_json(path: Path, content: object) -> None:
    """Write strict JSON; the file is whole or absent."""
    text = as_json(content) + '\n'
    with written_whole(path) as part:
        part.write_text(text)


def check_same_run(path: Path, description: dict, *, may_differ: Collection[str] = ()) -> None:
    """Compare the description of a run with the one that was written to a JSON file, if it is
    there.

    Args:
        may_differ: Names of fields that may change, those of inner objects behind a dot.

    Raises:
        ValueError: A field differs. The message names the file and the fields.
    """
    if not path.exists():
        return
    begun, now = json.loads(path.read_text()), json.loads(as_json(description))
    if other := sorted(_differing(begun, now) - set(may_differ)):
        raise ValueError(
            f'{path}: its run began with another {", ".join(other)}, '
            'choose another folder or remove this one'
        )


def begin_run(path: Path, description: dict, *, may_differ: Collection[str] = ()) -> None:
    """Write the description of a run to a JSON file, after `check_same_run`."""
    check_same_run(path, description, may_differ=may_differ)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 over the weights and configurations in a folder.

    Raises:
        ValueError: The folder has neither .safetensors nor .json files.
    """
    paths = [p for p in sorted(folder.rglob('*')) if p.suffix in ('.safetensors', '.json')]
    if not paths:
        raise ValueError(f'{folder}: no weights in this folder')
    digest = hashlib.sha256()
    for path in paths:
        with path.open('rb') as file:
            digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


def _differing(begun: dict, now: dict) -> set[str]:
    names = set()
    for name in {*begun, *now}:
        was, value = begun.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(value, dict):
            names |= {f'{name}.{inner}' for inner in _differing(was, value)}
        elif was != value:
            names.add(name)
    return names


def _plain(content: object) -> object:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    if isinstance(content, Path):
        return str(content)
    return content


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
