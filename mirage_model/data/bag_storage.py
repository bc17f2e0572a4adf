"""Messages of bags as they are stored: MCAP, sqlite3 and ROS 1, in one or several files.

Files are opened once, and each is read by its index, so that a message costs the same in a long
bag as in a short one. A topic in another format than ROS messages, or of a type that is unknown
here, matters only where it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, lru_cache
import heapq
from pathlib import Path
import re
import sqlite3
import tempfile
from typing import Any, BinaryIO, NamedTuple, Protocol
import weakref

import numpy as np
import yaml

SUFFIXES = ('.mcap', '.db3', '.bag')
_END = 2**63 - 1


class Topic(NamedTuple):
    """Name of a topic, its type such as sensor_msgs/msg/Image, and the format of its messages:
    cdr, ros1 or another."""

    name: str
    type: str
    format: str


@dataclass(frozen=True)
class Stored:
    """A message as it is stored, with the time at which it was written [ns]."""

    topic: Topic
    logged: int
    data: bytes


class _File(Protocol):
    topics: list[Topic]
    start: int
    """Time of the first message [ns]; `_END` in an empty file."""
    stop: int
    """Time after the last message [ns]."""

    def messages(self, names: Collection[str], start: int, stop: int) -> Iterator[Stored]:
        """Yield the messages of topics that were written from ``start`` until before ``stop``."""
        ...


class _Block(NamedTuple):
    """A chunk of an MCAP file, or a message outside of chunks: its times [ns], place and
    channels."""

    start: int
    end: int
    offset: int
    channels: frozenset[int] | None


class _McapFile:
    def __init__(self, path: Path, resources: ExitStack) -> None:
        from mcap.reader import make_reader

        self._stream = resources.enter_context(path.open('rb'))
        reader = make_reader(self._stream)
        summary = reader.get_summary()
        self._profile = reader.get_header().profile
        if summary is not None and self._is_complete(summary):
            self._schemas, self._channels = dict(summary.schemas), dict(summary.channels)
            blocks = [
                _Block(
                    index.message_start_time,
                    index.message_end_time,
                    index.chunk_start_offset,
                    frozenset(index.message_index_offsets) or None,
                )
                for index in summary.chunk_indexes
            ]
        else:
            blocks = self._scan()
        blocks.sort()
        self._blocks = blocks
        self._starts = [block.start for block in blocks]
        # blocks may overlap: the first that matters from a time on has the first latest end
        self._latest = np.maximum.accumulate([b.end for b in blocks]).tolist() if blocks else []
        self.start = blocks[0].start if blocks else _END
        self.stop = self._latest[-1] + 1 if blocks else 0
        self._topics = {number: self._topic(channel) for number, channel in self._channels.items()}
        self.topics = list(dict.fromkeys(self._topics.values()))

    @staticmethod
    def _is_complete(summary: Any) -> bool:
        """Return whether a summary names all chunks, channels and schemas."""
        used = {
            number for index in summary.chunk_indexes for number in index.message_index_offsets
        }
        schemas = {channel.schema_id for channel in summary.channels.values()} - {0}
        return bool(used) and used <= set(summary.channels) and schemas <= set(summary.schemas)

    def _scan(self) -> list[_Block]:
        """Return the blocks of a file that has no index of chunks."""
        from mcap.records import Channel, Chunk, Message, Schema
        from mcap.stream_reader import StreamReader, breakup_chunk

        self._schemas, self._channels = {}, {}
        blocks: list[_Block] = []
        self._stream.seek(0)
        offset = 8  # after the magic
        for record in StreamReader(self._stream, emit_chunks=True).records:
            if isinstance(record, Chunk):
                start, end = record.message_start_time, record.message_end_time
                blocks.append(_Block(start, end, offset, None))
            elif isinstance(record, Message):
                time, channel = record.log_time, frozenset({record.channel_id})
                blocks.append(_Block(time, time, offset, channel))
            for part in breakup_chunk(record) if isinstance(record, Chunk) else [record]:
                if isinstance(part, Schema):
                    self._schemas[part.id] = part
                elif isinstance(part, Channel):
                    self._channels[part.id] = part
            offset = self._stream.tell()
        return blocks

    def _topic(self, channel: Any) -> Topic:
        schema = self._schemas.get(channel.schema_id)
        return Topic(channel.topic, _type(schema.name if schema else ''), channel.message_encoding)

    def messages(self, names: Collection[str], start: int, stop: int) -> Iterator[Stored]:
        wanted = {number for number, topic in self._topics.items() if topic.name in names}
        first, last = bisect_left(self._latest, start), bisect_left(self._starts, stop)
        waiting: list[tuple[int, int, int, Stored]] = []
        for block in self._blocks[first:last]:
            if block.channels is not None and wanted.isdisjoint(block.channels):
                continue
            while waiting and waiting[0][0] <= block.start:
                yield heapq.heappop(waiting)[3]
            for place, message in enumerate(read_block(self._stream, block.offset)):
                if message.channel_id in wanted and start <= message.log_time < stop:
                    stored = Stored(
                        self._topics[message.channel_id], message.log_time, message.data
                    )
                    entry = message.log_time, block.offset, place, stored
                    heapq.heappush(waiting, entry)
        while waiting:
            yield heapq.heappop(waiting)[3]


@lru_cache(maxsize=1)
def read_block(stream: BinaryIO, offset: int) -> tuple[Any, ...]:
    """Return the messages of the block at an offset of an MCAP file.

    The last block is kept, since its images are often read one by one.
    """
    from mcap.records import Chunk, Message
    from mcap.stream_reader import StreamReader, breakup_chunk

    stream.seek(offset)
    reader = StreamReader(stream, skip_magic=True, emit_chunks=True)
    record = next(iter(reader.records))
    if not isinstance(record, Chunk):
        return (record,)
    return tuple(part for part in breakup_chunk(record) if isinstance(part, Message))


class _SqliteFile:
    def __init__(self, path: Path, resources: ExitStack) -> None:
        uri = f'{path.resolve().as_uri()}?immutable=1'
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        resources.callback(self._database.close)
        query = 'SELECT id, name, type, serialization_format FROM topics ORDER BY id'
        self._topics = {
            number: Topic(name, _type(kind), form)
            for number, name, kind, form in self._database.execute(query)
        }
        self.topics = list(dict.fromkeys(self._topics.values()))
        query = 'SELECT min(timestamp), max(timestamp) FROM messages'
        first, last = self._database.execute(query).fetchone()
        self.start: int = _END if first is None else first
        self.stop: int = 0 if first is None else last + 1
        columns = [row[2] for row in self._database.execute('PRAGMA index_info(timestamp_idx)')]
        self._ordered: list[tuple[int, int]] | None = None
        if columns[:1] != ['timestamp']:
            query = 'SELECT timestamp, id FROM messages ORDER BY timestamp, id'
            self._ordered = self._database.execute(query).fetchall()

    def messages(self, names: Collection[str], start: int, stop: int) -> Iterator[Stored]:
        numbers = [number for number, topic in self._topics.items() if topic.name in names]
        select = 'SELECT topic_id, timestamp, data FROM messages WHERE '
        if self._ordered is not None:
            first, last = (bisect_left(self._ordered, (time,)) for time in (start, stop))
            for _, identity in self._ordered[first:last]:
                rows = self._database.execute(f'{select} id = ?', (identity,))
                for number, logged, data in rows:
                    if number in numbers:
                        yield Stored(self._topics[number], logged, data)
            return
        marks = ', '.join('?' * len(numbers))
        rows = self._database.execute(
            f'{select} timestamp >= ? AND timestamp < ? AND topic_id IN ({marks}) '
            'ORDER BY timestamp',
            (start, stop, *numbers),
        )
        for number, logged, data in rows:
            yield Stored(self._topics[number], logged, data)


class _Ros1File:
    def __init__(self, path: Path, resources: ExitStack) -> None:
        from rosbags.rosbag1 import Reader

        self._reader = resources.enter_context(Reader(path))
        self._topics = {
            connection.id: Topic(connection.topic, connection.msgtype, 'ros1')
            for connection in self._reader.connections
        }
        self.topics = list(dict.fromkeys(self._topics.values()))
        empty = not self._reader.message_count
        self.start = _END if empty else self._reader.start_time
        self.stop = 0 if empty else self._reader.end_time

    def messages(self, names: Collection[str], start: int, stop: int) -> Iterator[Stored]:
        connections = [c for c in self._reader.connections if c.topic in names]
        if not connections:
            return
        for connection, logged, data in self._reader.messages(connections, start, stop):
            yield Stored(self._topics[connection.id], logged, data)


_FILES: dict[str, Callable[[Path, ExitStack], _File]] = {
    '.mcap': _McapFile,
    '.db3': _SqliteFile,
    '.bag': _Ros1File,
}


class BagStorage:
    """The stored messages of a bag. Its files stay open until the object is deleted."""

    def __init__(self, path: Path) -> None:
        """Open all files of a bag, which is a folder or a file.

        Raises:
            ValueError: It is not a bag, or a file cannot be read.
            ImportError: `rosbags` or `mcap` is missing.
        """
        import mcap  # noqa: F401
        import rosbags  # noqa: F401

        self._path = path
        resources = ExitStack()
        self.close: Callable[[], None] = weakref.finalize(self, resources.close)
        try:
            files, mode = _files(path)
            self._by_message = mode == 'message'
            self._open(files, resources)
        except Exception as error:  # broken files raise whatever the parsers stumble over
            self.close()
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise ValueError(f'{path}: cannot be read as a bag: {reason}') from error
        self._deserialize = _deserializers()

    def _open(self, files: list[Path], resources: ExitStack) -> None:
        self._files: list[_File] = []
        for file in files:
            if file.suffix == '.zstd':
                folder = resources.enter_context(tempfile.TemporaryDirectory())
                file = _unpacked(file, Path(folder))
            self._files.append(_FILES[file.suffix](file, resources))
        self._files.sort(key=lambda file: file.start)
        self.topics = sorted({topic for file in self._files for topic in file.topics})

    def types(self, name: str) -> list[str]:
        """Return the types of a topic; a bag of several robots may have more than one."""
        return [topic.type for topic in self.topics if topic.name == name]

    def check(self, name: str, types: Collection[str]) -> None:
        """Raise ValueError where a topic is absent or holds other messages than ``types``."""
        found = [topic for topic in self.topics if topic.name == name]
        if not found:
            there = ', '.join(f'{topic.name} ({topic.type})' for topic in self.topics)
            raise ValueError(f'{self._path}: no topic {name!r}, there are {there or "none"}')
        for topic in found:
            if topic.format not in self._deserialize:
                raise ValueError(
                    f'{self._path}: {name} is stored as {topic.format!r} '
                    f'({topic.type or "without a type"}), not as ROS messages (cdr or ros1)'
                )
            if topic.type not in types:
                raise ValueError(
                    f'{self._path}: {name} is of type {topic.type}, not {" or ".join(types)}'
                )

    def messages(
        self, names: Collection[str], *, start: int = 0, stop: int = _END
    ) -> Iterator[Stored]:
        """Yield the messages of topics in the order in which they were written.

        Args:
            start: First time of writing [ns].
            stop: Time of writing before which the last is [ns].
        """
        files = [file for file in self._files if file.start < stop and file.stop > start]
        streams = [file.messages(names, start, stop) for file in files]
        yield from heapq.merge(*streams, key=lambda stored: stored.logged)

    def read(self, stored: Stored) -> Any:
        """Return a message with the attributes of ROS 2. Raises ValueError where it is broken."""
        data = stored.data
        try:
            if self._by_message:
                import zstandard

                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            return self._deserialize[stored.topic.format](data, stored.topic.type)
        except Exception as error:  # broken messages raise whatever the parser stumbles over
            raise ValueError(' '.join(str(error).split()) or type(error).__name__) from None


def _files(path: Path) -> tuple[list[Path], str]:
    """Return the files of a bag, and '', 'file' or 'message' for how it is compressed."""
    if not path.exists():
        raise FileNotFoundError('it does not exist')
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f'it ends in none of {", ".join(SUFFIXES)}')
        return [path], ''
    metadata, mode = path / 'metadata.yaml', ''
    present = sorted(
        file
        for file in path.iterdir()
        if file.suffix in SUFFIXES
        or (file.suffix == '.zstd' and Path(file.stem).suffix in SUFFIXES)
    )
    if metadata.exists():
        information = yaml.safe_load(metadata.read_text())['rosbag2_bagfile_information']
        mode = str(information.get('compression_mode') or '').lower()
        mode = '' if mode == 'none' else mode
        form = information.get('compression_format')
        if mode and form != 'zstd':
            raise ValueError(f"its compression '{form}' is not zstd")
        names = [Path(name).name for name in information['relative_file_paths']]
        present = [path / name for name in names]
        if missing := [file.name for file in present if not file.exists()]:
            raise ValueError(f'metadata.yaml names files that are absent: {", ".join(missing)}')
    if not present:
        raise ValueError(f'no {", ".join(SUFFIXES)} file in this folder')
    return present, mode


def _unpacked(file: Path, folder: Path) -> Path:
    import zstandard

    target = folder / file.stem
    with file.open('rb') as packed, target.open('wb') as plain:
        zstandard.ZstdDecompressor().copy_stream(packed, plain)
    return target


def _type(name: str) -> str:
    """Return the name of a type as ROS 2 has it; ROS 1 has no /msg/, and IDL has colons."""
    parts = re.split(r'::|/', name)
    return f'{parts[0]}/msg/{parts[1]}' if len(parts) == 2 else '/'.join(parts)


@cache
def _deserializers() -> dict[str, Callable[[bytes, str], Any]]:
    """Return a function of data and type for each format of messages.

    The types are those of the distributions, which never changed: definitions in a bag may be
    absent or broken.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    ros2, ros1 = get_typestore(Stores.ROS2_JAZZY), get_typestore(Stores.ROS1_NOETIC)
    transforms = 'geometry_msgs/TransformStamped[] transforms'
    ros1.register(get_types_from_msg(transforms, 'tf/msg/tfMessage'))

    def from_ros1(data: bytes, kind: str) -> Any:
        message = ros1.deserialize_ros1(data, kind)
        if kind != 'sensor_msgs/msg/CameraInfo':
            return message
        names = [name for name in vars(message) if not name.startswith('_')]
        return ros2.types[kind](**{name.lower(): getattr(message, name) for name in names})

    return {'cdr': ros2.deserialize_cdr, 'ros1': from_ros1}
