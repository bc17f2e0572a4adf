from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[Compression]
    PNG: _ClassVar[Compression]
    JPEG: _ClassVar[Compression]
NONE: Compression
PNG: Compression
JPEG: Compression

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("protocol", "library", "sha256", "session", "lease")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    library: str
    sha256: str
    session: str
    lease: float
    def __init__(self, protocol: _Optional[int] = ..., library: _Optional[str] = ..., sha256: _Optional[str] = ..., session: _Optional[str] = ..., lease: _Optional[float] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("epoch", "session", "lease", "max_message_bytes", "model")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    session: str
    lease: float
    max_message_bytes: int
    model: Payload
    def __init__(self, epoch: _Optional[str] = ..., session: _Optional[str] = ..., lease: _Optional[float] = ..., max_message_bytes: _Optional[int] = ..., model: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("waiting",)
    WAITING_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    def __init__(self, waiting: _Optional[int] = ...) -> None: ...

class CallRequest(_message.Message):
    __slots__ = ("session", "verb", "arguments", "number")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    session: str
    verb: str
    arguments: Payload
    number: int
    def __init__(self, session: _Optional[str] = ..., verb: _Optional[str] = ..., arguments: _Optional[_Union[Payload, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class CallReply(_message.Message):
    __slots__ = ("value", "error")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    value: Payload
    error: Error
    def __init__(self, value: _Optional[_Union[Payload, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("session", "number", "received", "verb", "arguments", "compression")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    number: int
    received: int
    verb: str
    arguments: Payload
    compression: Compression
    def __init__(self, session: _Optional[str] = ..., number: _Optional[int] = ..., received: _Optional[int] = ..., verb: _Optional[str] = ..., arguments: _Optional[_Union[Payload, _Mapping]] = ..., compression: _Optional[_Union[Compression, str]] = ...) -> None: ...

class StreamPosition(_message.Message):
    __slots__ = ("session", "number", "received")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    session: str
    number: int
    received: int
    def __init__(self, session: _Optional[str] = ..., number: _Optional[int] = ..., received: _Optional[int] = ...) -> None: ...

class StreamReply(_message.Message):
    __slots__ = ("progress", "answer", "buffers", "end")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    answer: Answer
    buffers: Buffers
    end: End
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., buffers: _Optional[_Union[Buffers, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    def __init__(self, steps: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("index", "value", "buffers", "queue_seconds")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    value: Value
    buffers: int
    queue_seconds: float
    def __init__(self, index: _Optional[int] = ..., value: _Optional[_Union[Value, _Mapping]] = ..., buffers: _Optional[int] = ..., queue_seconds: _Optional[float] = ...) -> None: ...

class Buffers(_message.Message):
    __slots__ = ("items", "encode_seconds")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[bytes]
    encode_seconds: float
    def __init__(self, items: _Optional[_Iterable[bytes]] = ..., encode_seconds: _Optional[float] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: Error
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("kind", "message", "type", "errno")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Error.Kind]
        INVALID: _ClassVar[Error.Kind]
        CANCELLED: _ClassVar[Error.Kind]
        OS: _ClassVar[Error.Kind]
    UNKNOWN: Error.Kind
    INVALID: Error.Kind
    CANCELLED: Error.Kind
    OS: Error.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    kind: Error.Kind
    message: str
    type: str
    errno: int
    def __init__(self, kind: _Optional[_Union[Error.Kind, str]] = ..., message: _Optional[str] = ..., type: _Optional[str] = ..., errno: _Optional[int] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("value", "buffers")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    value: Value
    buffers: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, value: _Optional[_Union[Value, _Mapping]] = ..., buffers: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("none", "flag", "integer", "number", "text", "array", "list", "fields")
    NONE_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    none: Empty
    flag: bool
    integer: int
    number: float
    text: str
    array: Array
    list: Values
    fields: Fields
    def __init__(self, none: _Optional[_Union[Empty, _Mapping]] = ..., flag: bool = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ..., array: _Optional[_Union[Array, _Mapping]] = ..., list: _Optional[_Union[Values, _Mapping]] = ..., fields: _Optional[_Union[Fields, _Mapping]] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, items: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Fields(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, Value]
    def __init__(self, items: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "encoding", "first", "count")
    class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RAW: _ClassVar[Array.Encoding]
        PNG: _ClassVar[Array.Encoding]
        JPEG: _ClassVar[Array.Encoding]
        DEPTH_PNG: _ClassVar[Array.Encoding]
        BLOCKS: _ClassVar[Array.Encoding]
    RAW: Array.Encoding
    PNG: Array.Encoding
    JPEG: Array.Encoding
    DEPTH_PNG: Array.Encoding
    BLOCKS: Array.Encoding
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    encoding: Array.Encoding
    first: int
    count: int
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., encoding: _Optional[_Union[Array.Encoding, str]] = ..., first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...
