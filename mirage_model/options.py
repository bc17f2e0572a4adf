"""Allowed values of options, stated with the types of a configuration's fields.

A value that is not allowed is rejected when the configuration is made, and a file or folder that
is missing when its command is called. The messages have the name, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
import math
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from mirage_model.messages.doubts import DOUBTS


@dataclass(frozen=True)
class Allowed:
    """Test of a value, and the end of the message for a value that fails it."""

    test: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class Existing:
    """Kind of a path that is read."""

    kind: Literal['file', 'folder', 'file or folder']


Positive: TypeAlias = Annotated[float, Allowed(lambda x: 0 < x < math.inf, 'must be positive')]
NotNegative: TypeAlias = Annotated[
    float, Allowed(lambda x: 0 <= x < math.inf, 'must be 0 or more')
]
Finite: TypeAlias = Annotated[float, Allowed(math.isfinite, 'must be finite')]
Share: TypeAlias = Annotated[float, Allowed(lambda x: 0 <= x <= 1, 'must be a share in 0..1')]
Count: TypeAlias = Annotated[int, Allowed(lambda n: n >= 1, 'must be at least 1')]
Whole: TypeAlias = Annotated[int, Allowed(lambda n: n >= 0, 'must be 0 or more')]
Name: TypeAlias = Annotated[str, Allowed(lambda text: bool(text.strip()), 'must not be empty')]
Guidance: TypeAlias = Annotated[float, Allowed(lambda x: 1 <= x < math.inf, 'must be at least 1')]
Doubtful: TypeAlias = Annotated[
    tuple[str, ...],
    Allowed(lambda names: set(names) <= set(DOUBTS), f'must be among {", ".join(DOUBTS)}'),
]
Mount: TypeAlias = Annotated[
    tuple[float, ...],
    Allowed(lambda m: len(m) in (0, 7), 'must have 7 numbers: x y z [m], quaternion x y z w'),
]
InputFile: TypeAlias = Annotated[Path, Existing('file')]
InputFolder: TypeAlias = Annotated[Path, Existing('folder')]
InputFolderName: TypeAlias = Annotated[str, Existing('folder')]
InputPath: TypeAlias = Annotated[Path, Existing('file or folder')]


class Checked:
    """Base of configurations whose fields are checked when they are made."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value that its field does not allow."""
        for name, value, marker in _marked_fields(self):
            if isinstance(marker, Allowed) and not marker.test(value):
                raise ValueError(f'{name}: {_shown(value)}, {marker.text}')


def check_exists(name: str, path: str | Path, kind: str) -> None:
    """Raise ValueError where a path is not of this kind; an empty one is none.

    Args:
        name: Name of the option, with which the message begins.
    """
    if not str(path):
        return
    path = Path(path)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ValueError(f'{name}: {path}: {error.strerror}') from None
    if not exists:
        raise ValueError(f'{name}: {path} does not exist, must be a {kind}')
    found = 'folder' if is_folder else 'file'
    if found not in kind:
        raise ValueError(f'{name}: {path} is a {found}, must be a {kind}')


def check_inputs(config: object) -> None:
    """Raise ValueError for a file or folder that is missing or of the other kind, in a
    configuration or its parts."""
    for name, path, marker in _marked_fields(config):
        if isinstance(marker, Existing):
            check_exists(name, path, marker.kind)
    for item in fields(config):  # type: ignore[arg-type]
        part = getattr(config, item.name)
        if is_dataclass(part):
            check_inputs(part)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _marked_fields(config: object) -> Iterator[tuple[str, Any, Allowed | Existing]]:
    """Yield the name and each marked value of a configuration's own fields."""
    for name, hint in _hints(cast(Any, type(config))).items():
        for value, marker in _marked(getattr(config, name), hint):
            yield name, value, marker


def _marked(value: Any, hint: Any) -> Iterator[tuple[Any, Allowed | Existing]]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from ((value, m) for m in hint.__metadata__ if isinstance(m, Allowed | Existing))
        yield from _marked(value, hint.__origin__)
    elif origin in (Union, UnionType) and value is not None:
        for argument in arguments:
            yield from _marked(value, argument)
    elif origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        for part, kind in zip(value, kinds):
            yield from _marked(part, kind)


def _shown(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, tuple) else repr(value)
