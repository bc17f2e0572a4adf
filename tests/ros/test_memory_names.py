"""Names of memories: records, room and what is allowed."""

from __future__ import annotations

import pytest

from mirage_ros.memory_names import DRIVEN, MemoryNames, MemoryRecord, check_name

RECORD = MemoryRecord(camera_frame='camera')


def test_missing_memories_are_named():
    memories = MemoryNames(max_memories=2)
    with pytest.raises(ValueError, match="memory 'driven' is empty: nothing was observed yet"):
        memories.get(DRIVEN)
    with pytest.raises(ValueError, match="'a' does not exist; existing memories: none"):
        memories.get('a')
    memories.add(DRIVEN, RECORD)
    memories.add('b', MemoryRecord(camera_frame='', loaded=True))
    with pytest.raises(ValueError, match='existing memories: b, driven'):
        memories.get('a')
    assert memories.get(DRIVEN) is memories.find(DRIVEN) is RECORD
    assert (memories.names(loaded=False), memories.names(loaded=True)) == ([DRIVEN], ['b'])
    memories.clear()
    assert memories.find('b') is None


def test_reserved_names_take_room_until_released():
    memories = MemoryNames(max_memories=2)
    memories.add(DRIVEN, RECORD)  # needs no room
    memories.add('a', RECORD)
    memories.reserve('a')
    memories.reserve('b')
    memories.reserve('b')
    with pytest.raises(ValueError, match="'c': there is no room for it, .* is 2"):
        memories.reserve('c')
    memories.release('b')
    with pytest.raises(ValueError, match='no room'):
        memories.reserve('c')
    memories.release('b')
    memories.reserve('c')
    memories.remove('a')
    with pytest.raises(ValueError, match='no room'):
        memories.reserve('d')  # 'a' and 'c' are reserved


@pytest.mark.parametrize('name', ['', '.', '..', '../x', 'a/b', '.hidden', '-rf', 'x' * 65, 'é'])
def test_names_that_are_not_allowed(name):
    with pytest.raises(ValueError, match='file: .* is not a name'):
        check_name(name, 'file')


def test_names_that_are_allowed():
    for name in ('a', '_x', 'kitchen-2.safetensors', 'x' * 64):
        assert check_name(name, 'file') == name
