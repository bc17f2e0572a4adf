"""The executable ``mirage_node``: its call is checked before the node and torch are imported."""

from __future__ import annotations

import sys

from mirage_ros.command_line import check_call

USAGE = """usage: mirage_node [--ros-args --params-file FILE -p NAME:=VALUE -r TOPIC:=TOPIC ...]

config/mirage.yaml lists the parameters; the topics are image, camera_info, depth and the others of
docs/reference/ros.md."""


def main() -> int:
    """Run the node until SIGINT or SIGTERM; return the exit status.

    An interrupt before the node exists ends with 130.
    """
    try:
        check_call('mirage_node', USAGE)
        from mirage_ros import node
    except KeyboardInterrupt:
        print('mirage_node: interrupted', file=sys.stderr)
        return 130
    return node.main()


if __name__ == '__main__':
    sys.exit(main())
