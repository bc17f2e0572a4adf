"""What can still be read of an MCAP bag that breaks off, as when a recorder was killed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
import shutil
import struct

_MAGIC = b'\x89MCAP0\r\n'


def intact(bag: Path, folder: Path) -> tuple[Path, str]:
    """The bag and '', or a copy of what is left of it in ``folder``, and what was found in what breaks off.

    Bags of other formats are left alone. Raises ValueError where nothing is left.
    """
    files = [file for file in _files(bag) if file.suffix == '.mcap']
    broken = [file for file in files if not _ends_well(file)]
    if not broken:
        return bag, ''
    copy = folder / bag.resolve().name
    shutil.rmtree(folder, ignore_errors=True)
    inside = copy if bag.is_dir() else folder
    inside.mkdir(parents=True)
    for file in _files(bag):
        if file not in broken:
            (inside / file.name).symlink_to(file.resolve())
    found: Counter[str] = Counter()
    reasons = [
        f'{file.name} ({_copy_readable(file, inside / file.name, found)})' for file in broken
    ]
    names = ', '.join(reasons)
    if not found and len(broken) == len(files):
        raise ValueError(f'{bag} breaks off before its first message: {names}')
    counts = ', '.join(f'{count} on {topic}' for topic, count in sorted(found.items())) or 'none'
    return copy, f'{bag} breaks off, the end is missing: {names}; messages found: {counts}'


def _files(bag: Path) -> list[Path]:
    """Of a bag that is a folder, or one file."""
    return sorted(file for file in [bag, *bag.glob('*')] if file.is_file())


def _ends_well(file: Path) -> bool:
    with file.open('rb') as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - len(_MAGIC)))
        return stream.read() == _MAGIC


def _copy_readable(source: Path, target: Path, found: Counter[str]) -> str:
    """Write anew, with an index, what comes before the file breaks off; count it by topic, and return why."""
    from mcap.exceptions import McapError
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import StreamReader
    from mcap.writer import Writer

    why = 'no end'
    schemas: dict[int, int] = {}
    channels: dict[int, tuple[int, str]] = {}
    with source.open('rb') as stream, target.open('wb') as out:
        writer = Writer(out)
        writer.start(profile='ros2')
        try:
            for record in StreamReader(stream).records:
                if isinstance(record, Schema) and record.id not in schemas:
                    schemas[record.id] = writer.register_schema(
                        record.name, record.encoding, record.data
                    )
                elif isinstance(record, Channel) and record.id not in channels:
                    schema = schemas.get(record.schema_id, 0)
                    number = writer.register_channel(
                        record.topic, record.message_encoding, schema, record.metadata
                    )
                    channels[record.id] = number, record.topic
                elif isinstance(record, Message):
                    number, topic = channels[record.channel_id]
                    writer.add_message(
                        number, record.log_time, record.data, record.publish_time, record.sequence
                    )
                    found[topic] += 1
        except (McapError, struct.error, EOFError, ValueError) as error:
            why = str(error) or type(error).__name__
        writer.finish()
    return why
