"""The wire form of values: the dataclasses of `mirage_model.interface`, arrays, numbers and texts.

A value is a tree, with the bytes of its arrays in buffers beside it. The reader is led by the type
that it expects, so that a new field of a dataclass needs nothing here.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
import inspect
import io
import math
from pathlib import Path
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
import warnings

import cv2
import numpy as np
import PIL.Image

from mirage_model.interface import EngineProtocol
from mirage_model.serving.engine_pb2 import Array, Empty, Payload, Value

DTYPES = ('|b1', '|u1', '|i1', '<u2', '<i4', '<i8', '<f2', '<f4', '<f8')
"""The types of elements that travel."""
MAX_DEPTH = 16
"""Deepest nesting of a value."""
JPEG_QUALITY = 95
MIN_IMAGE = 16
"""Smallest side of an array that is compressed as an image [px]."""

Images = Literal['none', 'png', 'jpeg']
"""Compression of images: bit for bit, bit for bit too, or JPEG with depth in millimetres."""
Buffer = bytes | bytearray | memoryview
Buffers = Sequence[Buffer]


class WireError(ValueError):
    """The value does not have the form that its type asks for."""


@dataclass(frozen=True, kw_only=True)
class ArrayLimits:
    """Limits that are checked before an array takes memory."""

    nbytes: int
    """Bytes of all arrays of a value, decompressed."""


def encode(
    value: object, images: Images = 'none', *, name: str = ''
) -> tuple[Value, list[bytes | memoryview]]:
    """Return the tree of a value, and the bytes of its arrays.

    Args:
        images: Images of images; everything else travels as it is.
        name: Name of the field that holds the value; only ``depth`` is stored as depth.
    """
    buffers: list[bytes | memoryview] = []
    return _encode(value, images, buffers, name), buffers


def payload(value: object, images: Images = 'none') -> Payload:
    """Return a value with its buffers as one message."""
    tree, buffers = encode(value, images)
    return Payload(value=tree, buffers=[bytes(buffer) for buffer in buffers])


def _encode(value: object, images: Images, buffers: list, name: str) -> Value:
    if value is None:
        return Value(none=Empty())
    if isinstance(value, bool | np.bool_):
        return Value(flag=bool(value))
    if isinstance(value, int | np.integer):
        return Value(integer=int(value))
    if isinstance(value, float | np.floating):
        return Value(number=float(value))
    if isinstance(value, str | Path):
        return Value(text=str(value))
    if isinstance(value, np.ndarray):
        return Value(array=_encode_array(value, images, buffers, name))
    message = Value()
    if is_dataclass(value) or isinstance(value, Mapping):
        items = (
            value.items()
            if isinstance(value, Mapping)
            else ((field.name, getattr(value, field.name)) for field in fields(value))
        )
        message.fields.SetInParent()
        for key, item in items:
            message.fields.items[key].CopyFrom(_encode(item, images, buffers, key))
        return message
    if isinstance(value, list | tuple):
        message.list.SetInParent()
        message.list.items.extend(_encode(item, images, buffers, name) for item in value)
        return message
    raise TypeError(f'a {type(value).__name__} cannot travel')


def _encode_array(array: np.ndarray, images: Images, buffers: list, name: str) -> Array:
    array = np.ascontiguousarray(array).reshape(array.shape)
    array = array.astype(array.dtype.newbyteorder('<'), copy=False)
    if array.dtype.str not in DTYPES:
        raise TypeError(f'{name}: an array of {array.dtype} cannot travel')
    parts, encoding = _compressed(array, images, name)
    buffers.extend(parts)
    return Array(
        dtype=array.dtype.str,
        shape=array.shape,
        encoding=encoding,
        first=len(buffers) - len(parts),
        count=len(parts),
    )


def _compressed(array: np.ndarray, images: Images, name: str) -> tuple[list, str]:
    colour = array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3
    mask = array.dtype == np.uint8 and array.ndim == 3 and not colour
    depth = array.dtype == np.float32 and array.ndim == 2 and name == 'depth'
    height, width = array.shape[-3:-1] if colour else (0, 0, *array.shape)[-2:]
    if images == 'none' or min(height, width) < MIN_IMAGE:
        return [array.reshape(-1).view(np.uint8).data], 'RAW'
    if colour:
        each = array.reshape(-1, height, width, 3)
        if images == 'jpeg':
            return [_jpeg(image) for image in each], 'JPEG'
        return [_png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)) for image in each], 'PNG'
    if mask:
        return [_png(image) for image in array], 'PNG'
    if depth and images == 'jpeg':
        with np.errstate(invalid='ignore'):
            millimetres = np.where(array > 0, np.rint(array * 1000.0), 0)
        whole = np.where(millimetres < 65536, millimetres, 0)  # further away there is no depth
        return [_png(whole.astype(np.uint16))], 'DEPTH_PNG'
    return [array.reshape(-1).view(np.uint8).data], 'RAW'


def _jpeg(image: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def decode(value: Value, buffers: Buffers, kind: Any, *, limits: ArrayLimits) -> Any:
    """Return the value of a type.

    Raises:
        WireError: The tree does not have the form of the type, or its arrays exceed the limits.
    """
    return _Reader(buffers, limits).read(value, kind, 'value', 0)


def read_payload(message: Payload, kind: Any, *, limits: ArrayLimits) -> Any:
    """Return the value of a message. Raises WireError."""
    return decode(message.value, message.buffers, kind, limits=limits)


class _Reader:
    def __init__(self, buffers: Buffers, limits: ArrayLimits):
        self._buffers = buffers
        self._left = limits.nbytes
        self._limit = limits.nbytes

    def read(self, value: Value, kind: Any, name: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError(f'{name}: nested more than {MAX_DEPTH} deep')
        form, origin = value.WhichOneof('kind'), get_origin(kind)
        if origin in (Union, types.UnionType):
            return self._read_union(value, get_args(kind), name, depth)
        if origin is Literal:
            text = self.read(value, str, name, depth)
            if text not in get_args(kind):
                raise WireError(f'{name}: {text!r} is not one of {get_args(kind)}')
            return text
        if kind is None or kind is type(None):
            _expect(form == 'none', name, form, 'none')
            return None
        if kind is float and form == 'integer':
            return float(value.integer)
        for plain, field in _PLAIN.items():
            if kind is plain:
                _expect(form == field, name, form, field)
                return plain(getattr(value, field))
        if kind is np.ndarray:
            _expect(form == 'array', name, form, 'array')
            return self._read_array(value.array, name)
        if origin in (list, tuple, collections.abc.Sequence):
            _expect(form == 'list', name, form, 'list')
            item_kind = get_args(kind)[0]
            items = [
                self.read(item, item_kind, f'{name}[{i}]', depth + 1)
                for i, item in enumerate(value.list.items)
            ]
            return tuple(items) if origin is tuple else items
        if origin is collections.abc.Mapping:
            _expect(form == 'fields', name, form, 'fields')
            item_kind = get_args(kind)[1]
            return {
                key: self.read(item, item_kind, f'{name}[{key!r}]', depth + 1)
                for key, item in value.fields.items.items()
            }
        assert is_dataclass(kind) and isinstance(kind, type), f'{name}: {kind} is not known'
        _expect(form == 'fields', name, form, 'fields')
        return kind(**self.read_fields(value, _field_types(kind), name, depth))

    def read_fields(
        self, value: Value, kinds: Mapping[str, tuple[Any, bool]], name: str, depth: int = 0
    ) -> dict[str, Any]:
        """Read values by name; each name has its type, and whether it may be missing."""
        given = value.fields.items
        if unknown := sorted(set(given) - set(kinds)):
            raise WireError(f'{name}: has the unknown fields {unknown}, known are {sorted(kinds)}')
        missing = [
            key for key, (_, optional) in kinds.items() if not optional and key not in given
        ]
        if missing:
            raise WireError(f'{name}: the fields {missing} are missing')
        return {
            key: self.read(given[key], kind, f'{name}.{key}', depth + 1)
            for key, (kind, _) in kinds.items()
            if key in given
        }

    def _read_union(self, value: Value, kinds: tuple, name: str, depth: int) -> Any:
        """Read the first type of a union that fits."""
        reasons, left = [], self._left
        for kind in kinds:
            try:
                return self.read(value, kind, name, depth)
            except WireError as error:
                reasons.append(str(error))
                self._left = left
        raise WireError('; '.join(reasons))

    def _read_array(self, message: Array, name: str) -> np.ndarray:
        if message.dtype not in DTYPES:
            raise WireError(f'{name}: dtype {message.dtype!r} is not allowed, {DTYPES} are')
        dtype, shape = np.dtype(message.dtype), tuple(message.shape)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > self._left or len(shape) > 8:
            raise WireError(f'{name}: an array of {shape} is too large, {self._limit} bytes fit')
        self._left -= nbytes
        parts = self._buffers[message.first : message.first + message.count]
        if len(parts) != message.count:
            raise WireError(f'{name}: buffers are missing')
        if message.encoding == Array.RAW:
            if sum(map(len, parts)) != nbytes or len(parts) != 1:
                raise WireError(
                    f'{name}: has {sum(map(len, parts))} bytes, {shape} takes {nbytes}'
                )
            array = np.frombuffer(parts[0], dtype).reshape(shape)
            return array if isinstance(parts[0], bytearray | memoryview) else array.copy()
        return _decompressed(parts, message.encoding, dtype, shape, name)


_PLAIN: dict[type, str] = {
    bool: 'flag',
    int: 'integer',
    float: 'number',
    str: 'text',
    Path: 'text',
}


def _expect(right: bool, name: str, form: str | None, wanted: str) -> None:
    if not right:
        raise WireError(f'{name}: is {form}, must be {wanted}')


def _decompressed(
    parts: Buffers, encoding: int, dtype: np.dtype, shape: tuple[int, ...], name: str
) -> np.ndarray:
    colour = len(shape) in (3, 4) and shape[-1] == 3
    size = shape[-3:-1] if colour else shape[-2:]
    images = math.prod(shape[:-3] if colour else shape[:-2])
    wanted_dtype = np.float32 if encoding == Array.DEPTH_PNG else np.uint8
    if len(size) != 2 or len(parts) != images or dtype != wanted_dtype:
        raise WireError(f'{name}: {len(parts)} images do not make an array of {shape} {dtype}')
    array = np.empty((images, *size, *((3,) if colour else ())), dtype)
    for into, part in zip(array, parts):
        _check_size(part, encoding, size, name)
        flags = cv2.IMREAD_COLOR if colour else cv2.IMREAD_UNCHANGED
        image = cv2.imdecode(np.frombuffer(part, np.uint8), flags)
        if image is None or image.shape[:2] != size or image.ndim != into.ndim:
            raise WireError(f'{name}: an image is damaged')
        if encoding == Array.DEPTH_PNG:
            np.multiply(image, np.float32(0.001), out=into)
        elif colour:
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=into)
        else:
            into[:] = image
    return array.reshape(shape)


def _check_size(part: Buffer, encoding: int, size: tuple[int, ...], name: str) -> None:
    """Check format and size of an image by its header."""
    wanted = 'JPEG' if encoding == Array.JPEG else 'PNG'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(part), formats=(wanted,)) as image:
                found = image.size[::-1]
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        raise WireError(f'{name}: an image is not a {wanted}') from None
    if found != size:
        raise WireError(f'{name}: an image is {found}, its array needs {size}')


@cache
def _field_types(kind: type) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is not MISSING or field.default_factory is not MISSING,
        )
        for field in fields(kind)
    }


@cache
def arguments_of(verb: str) -> dict[str, tuple[Any, bool]]:
    """Return the type of each argument of a verb of `EngineProtocol`, and whether it may be
    missing."""
    function = getattr(EngineProtocol, verb)
    hints = get_type_hints(function)
    return {
        name: (hints[name], parameter.default is not inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ('self', 'cancelled')
    }


@cache
def result_of(verb: str) -> Any:
    """Return the type of what a verb of `EngineProtocol` returns or yields."""
    kind = get_type_hints(getattr(EngineProtocol, verb))['return']
    if get_origin(kind) is collections.abc.Iterator:
        return get_args(kind)[0]
    return kind


def bind(verb: str, arguments: Sequence[object], keywords: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of a verb by name."""
    function: Callable = getattr(EngineProtocol, verb)
    bound = inspect.signature(function).bind(None, *arguments, **keywords).arguments
    return {name: value for name, value in bound.items() if name not in ('self', 'cancelled')}


def read_arguments(message: Payload, verb: str, *, limits: ArrayLimits) -> dict[str, Any]:
    """Return the arguments of a verb of `EngineProtocol`. Raises WireError."""
    _expect(message.value.WhichOneof('kind') == 'fields', verb, 'no fields', 'fields')
    reader = _Reader(message.buffers, limits)
    return reader.read_fields(message.value, arguments_of(verb), verb)
