"""Errors of the engine as messages, so that a client raises what the engine raised."""

from __future__ import annotations

import os

from mirage_model.engine.worker import INCOMPLETE, Outcome
from mirage_model.interface import Cancelled, InvalidRequest
from mirage_model.serving.engine_pb2 import Error

_PLAIN = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""Classes that are raised again as they are, with their text."""


def error_message(error: BaseException) -> Error:
    """Return an error as a message."""
    name = type(error).__name__
    if isinstance(error, InvalidRequest):
        return Error(kind=Error.INVALID, message=str(error), type=name)
    if isinstance(error, Cancelled):
        return Error(kind=Error.CANCELLED, message=str(error), type=name)
    if isinstance(error, OSError) and error.errno is not None:
        file = '' if error.filename is None else f': {error.filename}'
        text = f'{error.strerror}{file}'
        return Error(kind=Error.OS, message=text, type=name, errno=error.errno)
    return Error(kind=Error.UNKNOWN, message=str(error), type=name)


def outcome_error(outcome: Outcome) -> Error | None:
    """Return the error of a request, or None if it is done."""
    if outcome.status == 'done' or outcome.reason.endswith(INCOMPLETE):
        return None
    if outcome.status == 'cancelled':
        return error_message(Cancelled(outcome.reason))
    if outcome.status == 'failed':
        name, _, text = outcome.reason.partition(': ')
        return Error(kind=Error.UNKNOWN, message=text, type=name)
    return error_message(InvalidRequest(outcome.reason))


def error_from(message: Error) -> Exception:
    """Return the error of a message; a class that Python does not have becomes a RuntimeError."""
    if message.kind == Error.INVALID:
        return InvalidRequest(message.message)
    if message.kind == Error.CANCELLED:
        return Cancelled(message.message)
    if message.kind == Error.OS:
        reason, _, file = message.message.partition(': ')
        known = message.errno in range(1, 4096) and os.strerror(message.errno) == reason
        return (
            OSError(message.errno, reason, *([file] if file else []))
            if known
            else OSError(message.message)
        )
    for kind in _PLAIN:
        if kind.__name__ == message.type:
            return kind(message.message)
    return RuntimeError(f'{message.type}: {message.message}')
