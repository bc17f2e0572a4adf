"""The command line: ``mirage COMMAND --help``.

Each command is a configuration dataclass and a function that takes it and returns the exit status.
Both are imported when their command is called, and the function only once its options are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
import sys
import textwrap
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from mirage_model.extras import explain
from mirage_model.io import check_output, sentence
from mirage_model.options import check_inputs

Config = TypeVar('Config')


class Command(NamedTuple):
    """Import paths of a command's configuration and function, and its line in the list."""

    config: str
    function: str
    summary: str


_CONFIG = 'mirage_model.evaluation.config'
_EVALUATION = 'mirage_model.evaluation'
_TRAINING = 'mirage_model.training'
COMMANDS = {
    'record': Command(
        'mirage_model.data.config:RecordCommand',
        'mirage_model.data.record:main',
        'clips of simulated trajectories',
    ),
    'prepare': Command(
        'mirage_model.data.config:PrepareCommand',
        'mirage_model.data.prepare:main',
        'clips of any source, made ready for training',
    ),
    'train codec': Command(
        f'{_TRAINING}.config:CodecTraining', f'{_TRAINING}.codec:main', 'the codec'
    ),
    'train first-guess': Command(
        f'{_TRAINING}.config:FirstGuessTraining',
        f'{_TRAINING}.first_guess:main',
        'block codec and resampler of mirage-tiny',
    ),
    'train world-model': Command(
        f'{_TRAINING}.config:WorldModelTraining',
        f'{_TRAINING}.world_model_command:main',
        'a stage of the world model',
    ),
    'train kit': Command(
        f'{_TRAINING}.kit_config:KitCommand',
        f'{_TRAINING}.kit:main',
        'a world model in some minutes of a GPU, from data to model folder',
    ),
    'train perception': Command(
        f'{_TRAINING}.perception_config:PerceptionTraining',
        f'{_TRAINING}.perception:main',
        'the embedded perception network',
    ),
    'train ablations': Command(
        f'{_TRAINING}.config:AblationsCommand',
        f'{_TRAINING}.ablations:main',
        'variants of the world model, compared',
    ),
    'train dry-run': Command(
        f'{_TRAINING}.config:DryRunConfig',
        f'{_TRAINING}.dry_run:main',
        'memory, operations and size of a training',
    ),
    'train text': Command(
        f'{_TRAINING}.config:TextConfig',
        f'{_TRAINING}.text:main',
        'the embedding of a prompt',
    ),
    'train curves': Command(
        f'{_TRAINING}.config:CurvesConfig',
        f'{_TRAINING}.curves:main',
        'curves of trainings as PNG and CSV',
    ),
    'export': Command(
        f'{_TRAINING}.config:ExportConfig',
        f'{_TRAINING}.export:main',
        'a model folder of trained parts',
    ),
    'serve': Command(
        'mirage_model.serving.config:ServeCommand',
        'mirage_model.serving.command:main',
        'a model for robots on other machines',
    ),
    'import': Command(
        'mirage_model.conversion.config:ImportCommand',
        'mirage_model.conversion.command:main',
        'a model folder of weights that others published',
    ),
    'replay': Command(
        f'{_CONFIG}:ReplayCommand',
        f'{_EVALUATION}.replay.command:main',
        'imagine along a recording and compare with its images',
    ),
    'evaluate tiny': Command(
        f'{_CONFIG}:RolloutQualityConfig',
        f'{_EVALUATION}.rollout_quality:main',
        'mirage-tiny on maps that it was not trained on',
    ),
    'evaluate compare': Command(
        f'{_CONFIG}:RolloutComparisonConfig',
        f'{_EVALUATION}.rollout_comparison:main',
        'models, or settings of one, on the same trajectories',
    ),
    'evaluate reprojection': Command(
        f'{_CONFIG}:ReprojectionConfig',
        f'{_EVALUATION}.reprojection_quality:main',
        'reprojected latents against warped pixels',
    ),
    'evaluate realestate10k': Command(
        f'{_CONFIG}:RealEstate10KConfig',
        f'{_EVALUATION}.protocols.realestate10k:main',
        'the RealEstate10K protocol',
    ),
    'evaluate worldscore': Command(
        f'{_CONFIG}:WorldScoreCommand',
        f'{_EVALUATION}.protocols.worldscore:main',
        'frames for the toolkit of WorldScore',
    ),
    'evaluate worldscore-scores': Command(
        f'{_CONFIG}:WorldScoreAggregateConfig',
        f'{_EVALUATION}.protocols.worldscore:aggregate_main',
        'the scores that the toolkit wrote, averaged',
    ),
    'evaluate tables': Command(
        f'{_CONFIG}:TablesConfig',
        f'{_EVALUATION}.protocols.paper_tables:main',
        "results of several folders in the paper's tables",
    ),
    'bench memory': Command(
        f'{_CONFIG}:MemorySpeedConfig',
        f'{_EVALUATION}.benchmarks.memory_speed:main',
        'speed of the memory',
    ),
    'bench score': Command(
        f'{_CONFIG}:ScoreConfig',
        f'{_EVALUATION}.benchmarks.coverage_score:main',
        'speed and error of coarse coverage',
    ),
    'bench half-resolution': Command(
        f'{_CONFIG}:HalfResolutionConfig',
        f'{_EVALUATION}.benchmarks.half_resolution:main',
        'quality and time of candidates at half resolution',
    ),
    'bench growth': Command(
        f'{_CONFIG}:MemoryGrowthConfig',
        f'{_EVALUATION}.benchmarks.memory_growth:main',
        'growth of the memory',
    ),
    'bench soak': Command(
        f'{_CONFIG}:MemorySoakConfig',
        f'{_EVALUATION}.benchmarks.memory_soak:main',
        'thousands of writes and reads under a cap',
    ),
    'bench efficiency': Command(
        f'{_CONFIG}:EfficiencyConfig',
        f'{_EVALUATION}.benchmarks.efficiency:main',
        'time and size of all memories along a rollout',
    ),
    'bench bag': Command(
        f'{_CONFIG}:BagBenchConfig',
        f'{_EVALUATION}.benchmarks.bag_reading:main',
        'cost of reading recordings of several lengths',
    ),
    'bench network': Command(
        f'{_CONFIG}:NetworkBenchConfig',
        f'{_EVALUATION}.benchmarks.network:main',
        'cost of an engine on a server; needs the source tree',
    ),
    'bench pool': Command(
        f'{_CONFIG}:PoolBenchConfig',
        f'{_EVALUATION}.benchmarks.pool:main',
        'cost of the front of a pool; needs the source tree',
    ),
    'bench network-soak': Command(
        f'{_CONFIG}:NetworkSoakConfig',
        f'{_EVALUATION}.benchmarks.network_soak:main',
        'robots and one server for minutes',
    ),
    'bench gpu': Command(
        f'{_CONFIG}:GpuBenchConfig',
        f'{_EVALUATION}.benchmarks.gpu:main',
        'time and memory of a chunk on one GPU, options on and off',
    ),
    'bench node': Command(
        'mirage_ros.tools.config:NodeBenchConfig',
        'mirage_ros.tools.bench_node:main',
        'cost of the ROS node; needs the source tree',
    ),
    'bench node-soak': Command(
        'mirage_ros.tools.config:SoakCommand',
        'mirage_ros.tools.soak:main',
        'right and wrong requests to a node for minutes',
    ),
    'report compare': Command(
        f'{_CONFIG}:CompareConfig',
        f'{_EVALUATION}.replay.compare:main',
        'whether two replays are equal',
    ),
    'report sample-bag': Command(
        f'{_CONFIG}:SampleBagConfig',
        f'{_EVALUATION}.replay.sample_bag:main',
        'a bag to try the replay with',
    ),
}


OUTPUTS = ('out', 'run', 'save_clips')
"""Fields of configurations that name a file or a folder to write; checked before any work."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The command's exit status; 1 for an input that cannot be used, with one sentence on
        stderr, 2 for a wrong call, 130 where it was interrupted.
    """
    words = list(sys.argv[1:] if words is None else words)
    name = _name(words)
    if name not in COMMANDS:
        return _list_commands(words)
    return run(COMMANDS[name], words[len(name.split()) :], prog=f'mirage {name}')


def run(command: Command, words: Sequence[str], *, prog: str) -> int:
    """Run one command; return its exit status as `main` does."""
    try:
        config = parse(_load(command.config), words, prog=prog)
        for name in OUTPUTS:
            if isinstance(path := getattr(config, name, None), Path):
                check_output(path, name)
        check_inputs(config)
        return _load(command.function)(config)
    except KeyboardInterrupt as interrupt:
        print('; '.join([f'{prog}: interrupted', *interrupt.args]), file=sys.stderr)
        return 130
    except ImportError as error:
        print(f'{prog}: {explain(error)}', file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f'{prog}: {sentence(error)}', file=sys.stderr)
        return 1


def parse(cls: type[Config], words: Sequence[str], *, prog: str) -> Config:
    """Make a configuration from options, and from a YAML file given with ``--config``.

    The file's keys are the options' names; options override the file. A list may be given as
    in YAML: ``--seeds '[0, 1]'``. Ends the program with 2 for an unknown or a wrong option.
    Raises ValueError for a file that cannot be used.
    """
    import tyro  # here, so that an interrupt while it is imported ends in a sentence too

    path, given = _take_config(list(words), prog=prog)
    from_file = [] if path is None else _options(path, _read(path), _hints(cls))
    description = (
        f'{cls.__doc__}\n\n--config FILE reads options from YAML; options given here override it.'
    )
    # before the file's options, of which a list would take them too
    leading = list(takewhile(lambda word: not word.startswith('-'), given))
    options = [part for word in given[len(leading) :] for part in _split(word)]
    options = [*leading, *from_file, *options]
    return tyro.cli(cls, args=options, prog=prog, description=description)


def _name(words: list[str]) -> str:
    """Return the command that the words begin with, or ''."""
    for count in (2, 1):
        if (name := ' '.join(words[:count])) in COMMANDS:
            return name
    return ''


def _list_commands(words: list[str]) -> int:
    """Print the commands, or those of a group; 0 where help was asked for."""
    asked = bool(words) and words[-1] in ('-h', '--help')
    group = words[0] if words and not words[0].startswith('-') else ''
    listed = {name: c for name, c in COMMANDS.items() if not group or name.split()[0] == group}
    if asked and listed:
        print(f'usage: mirage {group or "COMMAND"}{" COMMAND" if group else ""} [options]\n')
        for name, command in listed.items():
            print(f'  {name:28}{command.summary}')
        print('\nmirage COMMAND --help lists the options of a command.')
        return 0
    unknown = ' '.join(words[: 2 if listed else 1])
    print(f'mirage: {unknown!r} is not a command, there are:', file=sys.stderr)
    print(textwrap.indent('\n'.join(listed or COMMANDS), '  '), file=sys.stderr)
    return 2


def _load(place: str) -> Any:
    module, _, name = place.partition(':')
    return getattr(import_module(module), name)


def _take_config(words: list[str], *, prog: str) -> tuple[Path | None, list[str]]:
    """Return the file given with --config and the other words; no file for an empty name."""
    for at, word in enumerate(words):
        flag, equals, file = word.partition('=')
        if flag == '--config' and equals:
            rest = words[:at] + words[at + 1 :]
        elif flag == '--config' and at + 1 < len(words):
            file, rest = words[at + 1], words[:at] + words[at + 2 :]
        elif flag == '--config':
            print(f'{prog}: --config: needs a file', file=sys.stderr)
            raise SystemExit(2)
        else:
            continue
        return Path(file) if file else None, rest
    return None, words


def _read(path: Path) -> Mapping[str, object]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f'{path}: cannot be read as YAML: {error}') from None
    if not isinstance(values, Mapping):
        raise ValueError(f'{path}: is {type(values).__name__}, must be names with values')
    return values


def _hints(cls: type, prefix: str = '') -> dict[str, Any]:
    """Return the types of all options by name; those of a part have its name and a dot before
    them."""
    from tyro.conf import OmitArgPrefixes, Positional

    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        markers = getattr(hint, '__metadata__', ())
        kind = hint.__origin__ if markers else hint
        renamed = [m.name for m in markers if getattr(m, 'name', None) is not None]
        if isinstance(kind, type) and is_dataclass(kind):
            omitted = OmitArgPrefixes in markers or '' in renamed
            hints |= _hints(kind, prefix if omitted else f'{prefix}{name}.')
        elif Positional not in markers:
            hints[prefix + (renamed or [name])[0]] = hint
    return hints


def _options(path: Path, values: Mapping[str, object], hints: Mapping[str, Any]) -> list[str]:
    """Return the values of a file as options. Raises ValueError for a value of another type."""
    from tyro.conf import UseAppendAction

    flat = _flatten(values)
    if unknown := sorted(set(flat) - set(hints)):
        raise ValueError(f'{path}: {", ".join(unknown)}: not among {", ".join(sorted(hints))}')
    words: list[str] = []
    for name, value in flat.items():
        if expected := _mismatch(value, hints[name]):
            raise ValueError(f'{path}: {name}: {value!r}, must be {expected}')
        repeated = UseAppendAction in getattr(hints[name], '__metadata__', ())
        part, dot, last = name.replace('_', '-').rpartition('.')
        if isinstance(value, bool):
            words.append(f'--{part}{dot}{"" if value else "no-"}{last}')
        elif repeated and isinstance(value, list):
            for item in value:
                parts = item if isinstance(item, list) else [item]
                words += [f'--{part}{dot}{last}', *map(str, parts)]
        elif isinstance(value, list):
            words += [f'--{part}{dot}{last}', *map(str, value)]
        else:
            words.append(f'--{part}{dot}{last}={value}')
    return words


def _mismatch(value: object, hint: Any) -> str:
    """Return what a value of a file must be, '' where it is that; a number as text is left to the
    parser of options."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _mismatch(value, hint.__origin__)
    if origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return '' if value is None else _mismatch(value, kinds[0])
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return next((text for item in items if (text := _mismatch(item, arguments[0]))), '')
    if hint is bool:
        return '' if isinstance(value, bool) else 'true or false'
    if hint in (str, Path) or origin is Literal:
        return '' if isinstance(value, str) else 'text, which may need quotes'
    number = isinstance(value, int | float | str) and not isinstance(value, bool)
    return '' if number else 'a number'


def _flatten(values: Mapping[str, object], prefix: str = '') -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def _split(word: str) -> list[str]:
    """Return the items of a list in YAML's form as words of their own."""
    flag, equals, text = word.partition('=') if word.startswith('--') else ('', '', word)
    if not (text.startswith('[') and text.endswith(']')):
        return [word]
    return [*([flag] if equals else []), *map(str, yaml.safe_load(text))]


if __name__ == '__main__':
    sys.exit(main())
