"""How ROS executables read their call: help, ROS arguments, and status 2 for a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
import re
import sys

from mirage_model.io import sentence


def without_ros_arguments(prog: str, words: Sequence[str]) -> list[str]:
    """Return the words of a call that are not ROS arguments.

    Ends the program with a sentence on stderr: status 2 for ROS arguments that are wrong, 1 for a
    parameter file that cannot be read.
    """
    from rclpy.utilities import remove_ros_args

    try:
        return list(remove_ros_args([prog, *words])[1:])
    except RuntimeError as error:  # rclpy's errors of arguments have no public name
        text = re.sub(r', at [^ ,]+:[0-9]+', '', sentence(error))  # where in the source of rcl
        if type(error).__name__ == 'UnknownROSArgsError':
            text = f'{text}: not among the ROS arguments'
        print(f'{prog}: {text}', file=sys.stderr)
        raise SystemExit(1 if 'params file' in text else 2) from None


def check_call(prog: str, usage: str) -> None:
    """End the program where its call asks for help (status 0) or has other options (2)."""
    words = sys.argv[1:]
    if {'-h', '--help'} & set(words):
        print(usage)
        raise SystemExit(0)
    if others := without_ros_arguments(prog, words):
        print(
            f'{prog}: {others[0]}: not an option; parameters and remappings follow --ros-args',
            file=sys.stderr,
        )
        raise SystemExit(2)
