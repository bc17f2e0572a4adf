"""Values of the interface travel unchanged, and malformed ones are rejected."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
import math
from pathlib import Path
from typing import Any, get_type_hints

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from servers import request, view

from mirage_model import interface
from mirage_model.interface import (
    Candidate,
    CandidatesRequest,
    Chunk,
    CoverageScore,
    EngineUnavailable,
    InvalidRequest,
    Trajectory,
)
from mirage_model.serving.buffers import (
    FIELD,
    GROUP,
    MAX_TREE,
    BufferGroup,
    check_request,
    grouped,
    read_reply,
    write_reply,
)
from mirage_model.serving.engine_pb2 import (
    Array,
    Buffers,
    CallRequest,
    OpenRequest,
    Payload,
    StreamReply,
    StreamRequest,
    Value,
)
from mirage_model.serving.errors import error_from, error_message
from mirage_model.serving.images import WireError
from mirage_model.serving.wire import (
    MAX_VALUES,
    ArrayLimits,
    encode,
    payload,
    read_arguments,
    read_payload,
)

LIMITS = ArrayLimits(nbytes=2**24)
DATACLASSES = [
    kind for kind in vars(interface).values() if isinstance(kind, type) and is_dataclass(kind)
]


def example(kind: Any, name: str) -> Any:
    """Return a value of a type, made from the type alone."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: example(hints[f.name], f.name) for f in fields(kind)})
    origin, arguments = getattr(kind, '__origin__', None), getattr(kind, '__args__', ())
    if kind is np.ndarray:
        shapes = {'frames': (2, 20, 24, 3), 'image': (20, 24, 3), 'depth': (20, 24)}
        rng = np.random.default_rng(len(name))
        if name in ('frames', 'image', 'visibility', 'memory_frames', 'goal', 'colours'):
            return rng.integers(0, 256, shapes.get(name, (2, 20, 24)), dtype=np.uint8)
        return rng.random(shapes.get(name, (3, 4, 4))).astype(np.float32)
    plain = {bool: True, int: -7, float: math.nan, str: 'text', Path: Path('a/b')}
    if kind in plain:
        return plain[kind]
    if origin is tuple:
        return (example(arguments[0], name),) * 2
    if origin is not None and 'Mapping' in str(origin):
        return {'stage': 0.5}
    if 'Literal' in str(kind):
        return arguments[0]
    return example(arguments[0], name)  # a union


def assert_equal(a: Any, b: Any) -> None:
    if is_dataclass(a):
        assert type(a) is type(b)
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
        assert b.flags.writeable
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for each in zip(a, b):
            assert_equal(*each)
    else:
        assert a == b or (a != a and b != b)


def through(value: Any, images: str = 'none') -> Any:
    message = Payload.FromString(payload(value, images).SerializeToString())
    return read_payload(message, type(value), limits=LIMITS)


@pytest.mark.parametrize('kind', DATACLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize('images', ['none', 'png'])
def test_every_dataclass_of_the_interface_travels(kind, images):
    value = example(kind, '')
    assert_equal(value, through(value, images))


def test_optional_fields_may_be_none():
    value = view(depth=None)
    assert through(value).depth is None
    score = CoverageScore(
        visible=np.ones(2),
        observed=np.ones(2),
        age=np.full(2, math.nan),
        mean_age=math.inf,
        visible_ends=None,
        observed_ends=0,
    )
    assert_equal(score, through(score))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(['?', 'u1', 'i4', 'i8', 'f4', 'f8', '>f4', 'u2']),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_arrays_travel_bit_for_bit(dtype, shape):
    rng = np.random.default_rng(0)
    array = np.asarray(rng.random(shape) * 100).astype(dtype)
    for given_array in (array, array.T, np.broadcast_to(array, (2, *shape))):
        message = payload(given_array)
        found = read_payload(message, np.ndarray, limits=LIMITS)
        assert found.dtype == given_array.dtype.newbyteorder('<')
        np.testing.assert_array_equal(found, given_array)


def test_jpeg_is_close_and_depth_has_millimetres():
    ramp = np.linspace(0, 255, 96 * 160).reshape(96, 160)
    image = np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1).astype(np.uint8)
    depth = np.linspace(0.2, 70, 96 * 160, dtype=np.float32).reshape(96, 160)
    depth[0, :3] = np.nan, 0.0, np.inf
    found = through(view(image=image, depth=depth), 'jpeg')
    assert np.abs(found.image.astype(int) - image).mean() < 2
    valid = np.isfinite(depth) & (depth > 0) & (depth < 65.535)
    assert (found.depth[~valid] == 0).all()
    np.testing.assert_allclose(found.depth[valid], depth[valid], atol=0.00051)
    size = payload(view(image=image, depth=depth), 'jpeg').ByteSize()
    assert size < payload(view(image=image, depth=depth)).ByteSize() / 4


def test_arguments_are_those_of_the_verb():
    arguments = payload({'trajectories': [Trajectory(**path())], 'memory': 'm', 'coarse': True})
    found = read_arguments(arguments, 'score', limits=LIMITS)
    assert found['memory'] == 'm' and found['coarse'] is True and len(found['trajectories']) == 1
    for wrong, reason in (
        ({'trajectories': [], 'unknown': 1}, 'unknown'),
        ({'memory': 'm'}, "'trajectories'"),
        ({'trajectories': 'text'}, 'trajectories: is text'),
        ({'trajectories': [], 'memory': 3}, 'memory: is integer'),
    ):
        with pytest.raises(WireError, match=reason):
            read_arguments(payload(wrong), 'score', limits=LIMITS)
    both = payload({'request': CandidatesRequest(request_id='c', trajectories=(), seeds=())})
    found = read_arguments(both, 'predicted_seconds', limits=LIMITS)
    assert isinstance(found['request'], CandidatesRequest)


def path() -> dict:
    return {'world_from_camera': np.tile(np.eye(4), (2, 1, 1)), 'times': np.arange(2.0)}


def array_message(**changes) -> Payload:
    fields = {'dtype': '|u1', 'shape': [4], 'count': 1, **changes}
    buffers = fields.pop('buffers', [bytes(4)])
    return Payload(value=Value(array=Array(**fields)), buffers=buffers)


@pytest.mark.parametrize(
    'message, reason',
    [
        (array_message(dtype='|O'), 'dtype'),
        (array_message(dtype='<U4'), 'dtype'),
        (array_message(shape=[5]), '4 bytes'),
        (array_message(shape=[2**40]), 'too large'),
        (array_message(shape=[2**62, 4]), 'too large'),
        (array_message(shape=[0, 2**62]), 'too large'),
        (array_message(shape=[1] * 9), 'too large'),
        (array_message(count=2), 'do not take 1 buffers'),
        (array_message(first=7), 'do not take 1 buffers'),
        (array_message(count=3), '3 buffers do not make'),
        (array_message(count=0), '0 buffers do not make'),
        (array_message(count=2**31), '4096 are allowed'),
        (array_message(buffers=[bytes(4)] * 2), 'do not take 2 buffers'),
        (array_message(encoding='BLOCKS'), 'do not make masks'),
        (array_message(shape=[1, 2, 2], encoding='BLOCKS', buffers=[b'12']), '2 blocks'),
        (array_message(shape=[1, 4, 1], encoding='BLOCKS', buffers=[b'1']), '1 blocks'),
        (array_message(shape=[20, 24, 3], encoding='PNG'), 'not a PNG'),
        (array_message(shape=[20, 24, 3], encoding='JPEG'), 'not a JPEG'),
        (array_message(shape=[7, 20, 24, 3], encoding='JPEG'), 'images'),
        (Payload(value=Value(text='x')), 'is text'),
        (Payload(), 'is None'),
    ],
)
def test_malformed_arrays_are_rejected(message, reason):
    with pytest.raises(WireError, match=reason):
        read_payload(message, np.ndarray, limits=LIMITS)


def test_two_arrays_do_not_share_a_buffer():
    array = array_message().value
    both = Value()
    both.list.items.extend([array, array])
    with pytest.raises(WireError, match='belongs to another array'):
        read_payload(Payload(value=both, buffers=[bytes(4)]), list[np.ndarray], limits=LIMITS)


def test_a_tree_of_many_values_is_rejected():
    many = Value()
    many.list.items.extend(Value(integer=1) for _ in range(MAX_VALUES + 1))
    with pytest.raises(WireError, match='more than'):
        read_payload(Payload(value=many), list[int], limits=LIMITS)


@pytest.mark.parametrize('side', [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize('images', ['none', 'png', 'jpeg'])
def test_masks_travel_bit_for_bit_as_blocks(side, images):
    small = np.random.default_rng(side).integers(0, 256, (3, 48, 96), dtype=np.uint8)
    masks = small.repeat(side, 1).repeat(side, 2)[:, :48, :96].copy()
    message = payload(masks, images)
    np.testing.assert_array_equal(read_payload(message, np.ndarray, limits=LIMITS), masks)
    if side != 3:
        assert len(message.buffers[0]) == masks.size // side**2
    masks[1, 17, 30] ^= 1
    found = read_payload(payload(masks, images), np.ndarray, limits=LIMITS)
    np.testing.assert_array_equal(found, masks)


@given(st.lists(st.integers(0, 3 * 2**16), max_size=4), st.floats(0, 9))
@settings(max_examples=40, deadline=None)
def test_buffers_have_the_form_of_protobuf(sizes, seconds):
    items = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    slow = StreamReply(buffers=Buffers(items=items, encode_seconds=seconds))
    fast = BufferGroup(items=[memoryview(item) for item in items], encode_seconds=seconds)
    assert write_reply(fast) == slow.SerializeToString()
    found = read_reply(slow.SerializeToString())
    assert [bytes(item) for item in found.items] == items and found.encode_seconds == seconds


@pytest.mark.parametrize('damage', [b'', b'\x80', b'\x04\x0a\x09ab', b'\x02\x0a', b'\xff' * 11])
def test_malformed_buffers_are_rejected(damage):
    whole = StreamReply(buffers=Buffers(items=[b'abc'])).SerializeToString()
    with pytest.raises(ValueError):
        read_reply(whole[:1] + damage)
    for size in range(1, len(whole)):
        with pytest.raises(ValueError):
            read_reply(whole[:size])


def test_a_request_is_measured_without_its_buffers():
    large = np.zeros(3 * MAX_TREE, np.uint8)
    both = payload({'a': large, 'b': large})
    for kind in (CallRequest, StreamRequest):
        message = kind(session='s' * 99, number=2**60, arguments=both)
        check_request(message.SerializeToString(), kind)
        beside = len(message.SerializeToString()) - 2 * large.nbytes
        message.session = 's' * (99 + MAX_TREE - beside - 9 * FIELD)
        check_request(message.SerializeToString(), kind)
        message.session += 's' * 9 * FIELD
        with pytest.raises(WireError, match='beside its arrays'):
            check_request(message.SerializeToString(), kind)


@pytest.mark.parametrize(
    'content',
    [b'\x12\x00', b'\x0a\x04\x3a\x02\x0a\x00', b'\x0a\x02\x3a\x00', b'\x08\x01', b'\x0b'],
    ids=['buffers', 'values', 'lists', 'numbers', 'groups'],
)
def test_a_request_of_many_small_parts_is_not_parsed(content):
    content *= MAX_TREE + 1
    for message in (content, CallRequest(verb='x').SerializeToString() + content):
        for kind in (CallRequest, StreamRequest, OpenRequest):
            with pytest.raises(WireError):
                check_request(message, kind)
    nested = CallRequest.DESCRIPTOR.fields_by_name['arguments'].number << 3 | 2
    length = bytes([len(content) >> 7 * i & 127 | 128 * (i < 4) for i in range(5)])
    with pytest.raises(WireError):
        check_request(bytes([nested]) + length + content, CallRequest)


def test_buffers_are_sent_once_they_are_large_enough():
    sizes = [10, GROUP, 7, 2 * GROUP, 5]
    groups = list(grouped([memoryview(bytes(size)) for size in sizes]))
    assert [[len(item) for item in group.items] for group in groups] == [
        [10, GROUP],
        [7, 2 * GROUP],
        [5],
    ]


def test_an_image_larger_than_its_array_is_not_decompressed():
    bomb = cv2.imencode('.png', np.zeros((4000, 4000), np.uint8))[1].tobytes()
    message = array_message(shape=[1, 20, 24], encoding='PNG', buffers=[bomb])
    with pytest.raises(WireError, match='an image is'):
        read_payload(message, np.ndarray, limits=LIMITS)


def test_deep_nesting_is_rejected():
    value = Value(text='x')
    for _ in range(40):
        outer = Value()
        outer.list.items.append(value)
        value = outer
    kind: Any = str
    for _ in range(40):
        kind = list[kind]
    with pytest.raises(WireError, match='deep'):
        read_payload(Payload(value=value), kind, limits=LIMITS)


def test_objects_do_not_travel():
    with pytest.raises(TypeError, match='object'):
        encode(np.array([{}]))
    with pytest.raises(TypeError, match='set'):
        encode({1})


def test_compressed_images_share_no_buffer():
    chunk = example(Chunk, '')
    candidate = Candidate(index=0, chunks=(chunk, chunk), complete=True, goal_distance=0.0)
    assert_equal(candidate, through(candidate, 'png'))


@pytest.mark.parametrize(
    'error',
    [
        InvalidRequest('no'),
        interface.Cancelled('stop'),
        OSError(28, 'No space left on device', '/a/b'),
        OSError(28, 'No space left on device'),
        RuntimeError('broken'),
        MemoryError('injected'),
        KeyError('x'),
    ],
    ids=repr,
)
def test_errors_travel(error):
    found = error_from(error_message(error))
    assert type(found) is type(error) and str(found) == (
        str(error) if not isinstance(error, KeyError) else str(KeyError(str(error)))
    )


def test_an_unknown_error_is_a_runtime_error():
    class Odd(Exception):
        pass

    found = error_from(error_message(Odd('why')))
    assert type(found) is RuntimeError and str(found) == 'Odd: why'
    assert isinstance(EngineUnavailable('x'), OSError)
    assert request().request_id == 'r'
