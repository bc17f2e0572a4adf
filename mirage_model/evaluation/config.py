"""Configurations of replay, protocols and benchmarks, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
import math
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from mirage_model.data.config import BagConfig
from mirage_model.engine.config import EngineOptions
from mirage_model.options import (
    Checked,
    Count,
    Guidance,
    InputFile,
    InputFolder,
    InputPath,
    Name,
    NotNegative,
    Positive,
    Share,
    Whole,
)

GpuVariant = Literal[
    'plain',
    'few_steps',
    'compile',
    'float8',
    'tiling',
    'guidance',
    'offload',
    'compile_float8_few_steps',
]


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(EngineOptions):
    """Segments of a recording to imagine, and the images that the memory observes before them."""

    horizon: Positive = 4.0
    """Length of each imagined segment [s]."""
    stride: Positive = 4.0
    """Time from the start of one segment to the start of the next [s]."""
    observe: float = math.inf
    """How far back frames are observed before a segment [s]; inf: all, 0: its first frame alone.
    """
    observe_every: Positive = 0.5
    """Time between observed frames [s]."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds; each segment is imagined once with each."""
    steps: Whole = 0
    """Denoising steps; 0 takes the model's default."""
    prompt: str = ''
    """Text that describes the frames; empty takes the model's own text."""
    negative_prompt: str = ''
    """Text that describes what guidance leads away from."""
    guidance: Guidance = 1.0
    """Weight of classifier-free guidance; 1 is none."""
    devices: tuple[str, ...] = ('cpu',)
    """Devices such as cpu or cuda:1; several share the segments, one process each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.observe >= 0:
            raise ValueError(f'observe: {self.observe}, must be 0 or more seconds')
        for name in ('seeds', 'devices'):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f'{name}: {list(values)}, must be different values, at least 1')


@dataclass(frozen=True, kw_only=True)
class ReplayCommand(Checked):
    """Replay a recording: imagine along its poses and compare with its images."""

    bag: Positional[InputPath]
    """Folder or file of the bag, MCAP or sqlite3."""
    out: Path = Path('out/replay/file')
    """Folder of the results; an interrupted replay continues from them."""
    topics: OmitArgPrefixes[BagConfig]
    replay: OmitArgPrefixes[ReplayConfig] = ReplayConfig()


@dataclass(frozen=True, kw_only=True)
class SampleBagConfig(Checked):
    """Write a sample bag: a trajectory through a map of Freedoom."""

    out: Path = Path('out/replay/sample')
    """Folder of the bag; an existing bag is replaced."""
    map_name: Name = 'E2M6'
    """Map; mirage-tiny was not trained on the default."""
    kind: str = 'wander'
    """Trajectory: forward, turn, out_and_back or wander."""
    seconds: Positive = 64.0
    """Length of the recording [s]."""
    seed: Whole = 2
    """Random seed of the trajectory."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Checked):
    """Compare two replays: every frame, mask and metric must be equal."""

    folders: Positional[tuple[InputFolder, InputFolder]]
    """Folders of results of two replays."""


@dataclass(frozen=True, kw_only=True)
class RolloutQualityConfig(Checked):
    """Measure mirage-tiny along trajectories through maps that it was not trained on."""

    model: InputFolder | None = None
    """Folder of weights; None for mirage-tiny."""
    trajectories: Whole = 64
    """Number of trajectories through test maps of Doom."""
    houses: Whole = 32
    """Number of trajectories through test houses."""
    office: InputFolder | None = None
    """Folder of posed RGB-D frames, see `evaluation.office`; None leaves the set out."""
    office_starts: Count = 20
    """First chunks that are imagined in the office."""
    frames: Count = 129
    """Frames of a trajectory, the seed included; 16 k + 1 for mirage-tiny."""
    before: InputFolder | None = None
    """Folder of other weights to compare the first chunk and the speed with."""
    out: Path = Path('out/eval')
    """Folder of the results; an interrupted evaluation continues from them."""
    workers: Count = 2
    """Processes of one thread each."""


@dataclass(frozen=True, kw_only=True)
class RolloutComparisonConfig(Checked):
    """Compare models, or settings of a model, on the same trajectories through held-out maps.

    A variant is FOLDER, or FOLDER:field=value,... with other values of steps, references or
    preceding than in its model.json. Differences are to the first.
    """

    variants: Positional[tuple[str, ...]]
    """Model folders, with settings if wanted."""
    trajectories: Count = 24
    """Number of trajectories, a third each turning, forward, and out and back."""
    chunks: Count = 8
    """Chunks of a trajectory."""
    world: Literal['doom', 'rooms'] = 'doom'
    """Maps of Freedoom, or houses."""
    out: Path = Path('out/eval/compare')
    """Folder of the results; an interrupted comparison continues."""
    workers: Count = 1
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.variants:
            raise ValueError('variants: none are given, at least 1 model folder is needed')
        if len(set(self.variants)) < len(self.variants):
            raise ValueError('variants: one is given twice, they must differ')


@dataclass(frozen=True, kw_only=True)
class ReprojectionConfig(Checked):
    """Measure how well latents survive reprojection, against warped pixels."""

    clips: InputFolder
    """Folder of clips with train/ and the held-out split."""
    held_out: Name = 'validation'
    """Split that is measured."""
    codec: InputFolder | None = None
    """Folder of the codec; None for that of mirage-tiny."""
    pairs: Count = 70
    """Held-out pairs of frames at every gap."""
    training_pairs: Count = 240
    """Pairs that the repair networks are trained on, over all gaps."""
    steps: Count = 1500
    """Training steps of a repair network."""
    out: Path = Path('out/reprojection.json')
    """File of the results."""


@dataclass(frozen=True, kw_only=True)
class RealEstate10KConfig(Checked):
    """Evaluate on RealEstate10K: the first frame and the true trajectory in, frames out."""

    text: InputFolder
    """Folder of the data set's text files."""
    frames: InputFolder
    """Folder with a folder of frames for every sequence."""
    manifest: Path
    """File with one sequence name a line; written if absent."""
    clips: Count = 100
    """Sequences of a manifest that is written."""
    length: Count = 65
    """Most frames of a clip."""
    model: InputFolder | None = None
    """Folder of weights; None for mirage-tiny."""
    device: str = 'cpu'
    """Device of the model."""
    out: Path = Path('out/realestate10k')
    """Folder of the results; an interrupted evaluation continues from them."""


@dataclass(frozen=True, kw_only=True)
class WorldScoreConfig(Checked):
    """Camera paths and images of WorldScore."""

    frames: Count = 49
    """Frames of a layout, both ends included."""
    resolution: tuple[Count, Count] = (1280, 720)
    """Width and height that images are cropped and scaled to [px]."""
    focal_length: Positive = 500.0
    """Focal length at that resolution [px]."""
    metres_per_unit: Positive = 1.0
    """Length of a unit of the camera paths [m]."""
    seed: Whole = 0
    """Random seed of every instance."""


@dataclass(frozen=True, kw_only=True)
class WorldScoreCommand(Checked):
    """Imagine the instances of WorldScore's data set in its toolkit's layout."""

    dataset: tuple[InputFile, ...]
    """JSON files of the data set."""
    root: InputFolder
    """Folder that the images' names are relative to."""
    model: InputFolder | None = None
    """Folder of weights; None for mirage-tiny."""
    device: str = 'cpu'
    """Device of the model."""
    out: Path = Path('out/worldscore_output')
    """Folder of the toolkit; an interrupted run continues from it."""
    worldscore: OmitArgPrefixes[WorldScoreConfig] = WorldScoreConfig()


@dataclass(frozen=True, kw_only=True)
class WorldScoreAggregateConfig(Checked):
    """Average the scores that WorldScore's toolkit wrote."""

    out: InputFolder = Path('out/worldscore_output')
    """Folder of the toolkit."""


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Print results of several folders as a table in the paper's form."""

    folders: Positional[tuple[str, ...]]
    """NAME=DIR of every row."""
    first: str = 'variant'
    """Title of the column of names."""
    out: Path | None = None
    """Markdown file; None to print only."""


@dataclass(frozen=True, kw_only=True)
class MemorySpeedConfig(Checked):
    """Measure how fast the latent memory is, as ratios to a plain implementation."""

    out: Path = Path('out/bench/memory.json')
    """File of the results."""
    scale: Positive = 1.0
    """Share of the full number of points to measure with."""
    repeats: Count = 20
    """Repeats of every timing; the median counts."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Checked):
    """Measure speed and error of the coarse coverage of candidates, against the exact coverage."""

    out: Path = Path('out/bench/score.json')
    """File of the results."""
    points: Count = 1_000_000
    """Points in the memory."""
    rooms: Count = 64
    """Rooms of the building."""
    repeats: Count = 20
    """Repeats of every timing; the median counts."""


@dataclass(frozen=True, kw_only=True)
class HalfResolutionConfig(Checked):
    """Measure quality and time of candidates at half resolution, on validation maps."""

    out: Path = Path('out/bench/half.json')
    """File of the results."""
    trajectories: Count = 12
    """Number of trajectories."""
    frames: Count = 33
    """Frames of a trajectory, the first included; 16 k + 1 for mirage-tiny."""


@dataclass(frozen=True, kw_only=True)
class MemoryGrowthConfig(Checked):
    """Measure how much the memory grows along a corridor and on the way back through a map."""

    out: Path = Path('out/bench/growth.json')
    """File of the results."""
    map_name: Name = 'E1M1'
    """Map of Freedoom."""
    frames: Count = 33
    """Frames of the way out."""
    stride: Count = 8
    """Width of a cell of the latent grid [px]."""
    seed: Whole = 3
    """Random seed of the trajectory."""


@dataclass(frozen=True, kw_only=True)
class MemorySoakConfig(Checked):
    """Read and write the memory for thousands of steps under a cap on its size."""

    out: Path = Path('out/bench/soak.json')
    """File of the results."""
    map_name: Name = 'E1M1'
    """Map of Freedoom."""
    steps: Count = 2000
    """Number of writes, and of reads."""
    stride: Count = 4
    """Width of a cell of the latent grid [px]."""
    channels: Count = 48
    """Latent channels."""
    capacity: Count = 20_000
    """Most points that the memory holds."""
    policy: Literal['oldest', 'furthest', 'imagined'] = 'oldest'
    """Points that are evicted first."""
    seed: Whole = 0
    """Random seed of the trajectory."""


@dataclass(frozen=True, kw_only=True)
class GpuBenchConfig(Checked):
    """Measure a chunk on one GPU with random weights: time by stage, memory, options on and off.

    The result lists the variants that the time limit leaves no room for.
    """

    size: Literal['wan22_5b', 'tiny'] = 'wan22_5b'
    """Size of the model and its frames; tiny is for trying the command."""
    device: str = 'cuda'
    """Device of the model."""
    chunks: Count = 2
    """Chunks that are timed after the first."""
    seconds: Positive = 240.0
    """Time after which no variant is begun [s]."""
    only: UseAppendAction[tuple[GpuVariant, ...]] = ()
    """Variants to measure; none measures all."""
    out: Path = Path('out/bench/gpu.json')
    """File of the results."""


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig(Checked):
    """Measure time and size of all memories along rollouts; write the page of results."""

    sizes: tuple[Literal['embedded', 'wan22_5b'], ...] = ('embedded', 'wan22_5b')
    """Models: embedded is run whole, wan22_5b is composed of single timings."""
    chunks: Count = 20
    """Chunks of a rollout."""
    runs: Count = 3
    """Repeats of every rollout or timing."""
    model: InputFolder | None = None
    """Folder of the embedded model's weights; None for mirage-tiny."""
    out: Path = Path('out/bench/efficiency')
    """Folder of finished timings; an interrupted benchmark continues from them."""
    docs: Path = Path('docs/measurements')
    """Folder of the page."""


@dataclass(frozen=True, kw_only=True)
class BagBenchConfig(Checked):
    """Measure what reading a bag costs a picture, for bags of several lengths."""

    minutes: tuple[Positive, ...] = (1.0, 10.0, 60.0)
    """Lengths of the bags, which the command writes itself [min]."""
    height: Count = 180
    """Height of the images [px]."""
    width: Count = 270
    """Width of the images [px]."""
    rate: Positive = 8.0
    """Images per second."""
    segments: Count = 100
    """Most segments of a bag whose pictures are read."""
    out: Path = Path('out/bench/bag.json')
    """File of the results; the bags are beside it while the command runs."""


@dataclass(frozen=True, kw_only=True)
class NetworkBenchConfig(Checked):
    """Measure what an engine on a server costs over loopback, beside the same in process."""

    out: Path = Path('out/bench/network.json')
    """File of the results."""
    repeats: Count = 10
    """Requests of each kind; medians are reported."""


@dataclass(frozen=True, kw_only=True)
class PoolBenchConfig(Checked):
    """Measure what the front of a pool costs, by engines that answer at once."""

    out: Path = Path('out/bench/pool.json')
    """File of the results."""
    sessions: tuple[Count, ...] = (1, 10, 50, 100, 200)
    """Robots at a time, a row each."""
    seconds: Positive = 20.0
    """Time that each number of robots is measured [s]."""
    chunks: Count = 5
    """Requests for large chunks on each way."""


@dataclass(frozen=True, kw_only=True)
class NetworkSoakConfig(Checked):
    """Send right and wrong requests of several robots to one server for minutes."""

    out: Path = Path('out/bench/network_soak.json')
    """File of the results."""
    minutes: Positive = 10.0
    """Time of sending requests [min]."""
    robots: Count = 3
    """Number of robots."""
    delay_ms: NotNegative = 0.0
    """Time that bytes are on the way in each direction [ms]."""
    loss: Share = 0.0
    """Share of pieces of up to 64 KiB that come 200 ms later, as after a loss, in 0..1."""
    seed: Whole = 0
    """Random seed of the requests."""
