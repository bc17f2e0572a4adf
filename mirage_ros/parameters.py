"""ROS parameters of the node; config/mirage.yaml is generated from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from mirage_model.engine.config import EngineOptions
from mirage_model.engine.keyframes import KeyframeConfig
from mirage_model.messages.doubts import DOUBTS, Doubts
from mirage_model.messages.poses import matrix_from_numbers
from mirage_ros.declaration import as_yaml, parameter

KEYFRAMES = KeyframeConfig()
INT_MAX = 2**31 - 1
IMAGES = ('jpeg', 'png', 'none')
RELIABILITIES = ('best_effort', 'reliable')


@dataclass(frozen=True, kw_only=True)
class ModelParameters:
    folder: str = parameter(
        '',
        'Folder with the weights of the model; empty for the mirage-tiny of the package.',
        reads='folder',
    )
    device: str = parameter('cpu', 'Torch device of the model, such as cpu, cuda or cuda:1.')
    labeller: str = parameter(
        '',
        'Folder of a labeller of dynamic objects and sky; empty for that of the model, if it has '
        'one.',
        reads='folder',
    )
    without_labels: str = parameter(
        'warn',
        'Action at configuration where nothing segments dynamic objects, so that each passer-by '
        'enters the memory.',
        among=('warn', 'reject', 'accept'),
    )
    allow_unscaled_depth: bool = parameter(
        False,
        'Accept images without metric depth, for which lengths along a path have no meaning.',
    )
    refine_cameras: bool = parameter(
        False,
        'Estimate the cameras of generated frames by matched features before the frames are '
        'written to the memory.',
    )
    compile: bool = parameter(
        False,
        'Compile the blocks of the transformer: minutes when the node is configured, then faster '
        'steps.',
    )
    offload: bool = parameter(
        False,
        "Keep the transformer's weights in RAM and copy those of each layer to the device while "
        'it computes.',
    )
    float8: bool = parameter(
        False, "Store the transformer's weights in 8 bits, which takes half the device memory."
    )

    @property
    def options(self) -> EngineOptions:
        """The options of the engine, which commands have too."""
        names = {field.name for field in fields(EngineOptions)} - {'model_folder'}
        return EngineOptions(
            model_folder=self.folder, **{name: getattr(self, name) for name in names}
        )


@dataclass(frozen=True, kw_only=True)
class EngineParameters:
    address: str = parameter(
        '',
        'Server that generates, grpcs://HOST:PORT (grpc:// on loopback only); empty to generate '
        'in this process. Model and size of the memories are then those of the server.',
    )
    authority: str = parameter(
        '',
        "File with the certificate of the authority that signed the server's, PEM.",
        reads='file',
    )
    certificate: str = parameter('', 'File with the certificate of this robot, PEM.', reads='file')
    key: str = parameter('', 'File with the private key of engine.certificate, PEM.', reads='file')
    sha256: str = parameter('', 'SHA-256 of the weights that the server must have; empty for any.')
    images: str = parameter(
        'jpeg',
        'Compression of images between robot and server; png changes no pixel, none is for fast '
        'links.',
        among=IMAGES,
    )
    timeout: float = parameter(
        5.0,
        'Time without an answer after which the link counts as broken, and for which a call waits '
        'for a new one [s].',
        bounds=(0.5, 60.0),
    )
    lease: float = parameter(
        30.0,
        'Time for which the server keeps the memories of a robot that is silent [s]; the server '
        'may allow less.',
        bounds=(1.0, 3600.0),
    )
    keep_bytes: int = parameter(
        64 * 2**20,
        'Size of the newest observations, compressed, that are sent again if the server has lost '
        'the memories [bytes]; the newest one of each memory is always kept.',
        bounds=(0, INT_MAX),
    )


@dataclass(frozen=True, kw_only=True)
class FrameParameters:
    world: str = parameter(
        'map', 'Fixed frame of the memory. Paths may be in any frame that TF connects to it.'
    )
    odom: str = parameter(
        'odom', 'Odometry frame. Its jumps in frames.world are handled as loop closures.'
    )
    base: str = parameter(
        'base_link', 'Frame whose poses a nav_msgs/Path holds; a trajectory may hold them too.'
    )
    base_from_camera: tuple[float, ...] = parameter(
        (),
        "Pose of the camera's optical frame in frames.base: x y z [m], quaternion x y z w. Empty "
        'to look it up in TF.',
        example=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    )
    imagined_prefix: str = parameter(
        'imagined/', "Prefix of the camera's frame id on everything that was imagined."
    )


@dataclass(frozen=True, kw_only=True)
class TfParameters:
    enabled: bool = parameter(True, 'Subscribe to /tf and /tf_static.')
    history: float = parameter(
        30.0, 'Time for which transforms are kept [s].', bounds=(1.0, 3600.0)
    )
    wait: float = parameter(
        2.5, 'Time that a lookup waits for a transform that is late [s].', bounds=(0.0, 10.0)
    )
    max_gap: float = parameter(
        0.5,
        'Longest time from an image to the transforms before and after it, link by link [s]; '
        'fixed links may be sent at any rate.',
        bounds=(0.001, 3600.0),
    )


@dataclass(frozen=True, kw_only=True)
class PathParameters:
    speed: float = parameter(
        0.5, 'Speed along a nav_msgs/Path without stamps [m/s].', bounds=(0.01, 50.0)
    )
    turn_rate: float = parameter(
        0.8, 'Turn rate along a nav_msgs/Path without stamps [rad/s].', bounds=(0.01, 20.0)
    )
    orientation: str = parameter(
        'auto',
        'Orientations of a nav_msgs/Path: those that were sent, or the direction of travel. auto '
        'takes the direction where the orientations are zero, or where they never turn and the '
        'path leaves their direction.',
        among=('auto', 'as_sent', 'along_path'),
    )


@dataclass(frozen=True, kw_only=True)
class SensorParameters:
    transport: str = parameter(
        'raw',
        'Transport of image and depth; compressed appends /compressed (JPEG or PNG) to the name '
        'of image and /compressedDepth (PNG) to that of depth.',
        among=('raw', 'compressed'),
    )
    use_depth: bool = parameter(True, 'Require a depth image with the stamp of the image.')
    stamp_tolerance: float = parameter(
        0.02,
        'Largest difference between the stamps of an image and its depth image, and its '
        'camera_info where intrinsics vary [s].',
        bounds=(0.0, 1.0),
    )
    accept: tuple[str, ...] = parameter(
        (),
        f'Names of doubtful inputs to accept, as warnings give them: {", ".join(DOUBTS)}.',
        example=('pixel_aspect',),
    )


@dataclass(frozen=True, kw_only=True)
class ObserveParameters:
    pose_source: str = parameter(
        'none',
        'Pose of the camera or of frames.base: TF, the topic odometry (nav_msgs/Odometry) or pose '
        '(geometry_msgs/PoseStamped, PoseWithCovarianceStamped with pose_with_covariance). With '
        'none no image is written to the memory, and a path begins where its image was taken.',
        among=('none', 'tf', 'odometry', 'pose', 'pose_with_covariance'),
    )
    rate: float = parameter(
        2.0,
        'Rate at which the newest image is considered for the memory [Hz].',
        bounds=(0.01, 60.0),
    )


@dataclass(frozen=True, kw_only=True)
class KeyframeParameters:
    distance: float = parameter(
        KEYFRAMES.distance,
        'Translation since the last keyframe after which an image may become the next [m].',
        bounds=(0.0, 100.0),
    )
    angle: float = parameter(
        KEYFRAMES.angle,
        'Rotation since the last keyframe after which an image may become the next [rad].',
        bounds=(0.0, 3.2),
    )
    gain: float = parameter(
        KEYFRAMES.gain,
        'Smallest unobserved share of the view for an image to become a keyframe after motion [0 '
        'to 1].',
        bounds=(0.0, 1.0),
    )
    refresh: float = parameter(
        KEYFRAMES.refresh,
        'Time since the last keyframe after which an image becomes the next without motion or '
        'gain [s].',
        bounds=(0.0, 1e6),
    )


@dataclass(frozen=True, kw_only=True)
class JumpParameters:
    distance: float = parameter(
        0.2,
        'Translation of frames.odom in frames.world between two images that counts as a jump [m].',
        bounds=(0.0, 100.0),
    )
    angle: float = parameter(
        0.1,
        'Rotation of frames.odom in frames.world between two images that counts as a jump [rad].',
        bounds=(0.0, 3.2),
    )
    action: str = parameter(
        'reanchor',
        'Action on the memories at a jump: transform them, delete them, or leave them.',
        among=('reanchor', 'reset', 'ignore'),
    )


@dataclass(frozen=True, kw_only=True)
class MemoryParameters:
    start_from_driven: bool = parameter(
        True,
        "Start requests that name no memory from the memory 'driven' once it has an observation; "
        'false: from the newest image.',
    )
    folder: str = parameter(
        '',
        'Folder that memories are saved to and loaded from; empty to reject both services.',
        writes=True,
    )
    capacity: int = parameter(
        4_000_000,
        'Largest number of latent points in a memory, about 125 bytes each for mirage-tiny; 0 for '
        'no limit.',
        bounds=(0, INT_MAX),
    )
    policy: str = parameter(
        'oldest',
        'Latent points that a full memory evicts first.',
        among=('oldest', 'furthest', 'imagined'),
    )
    resident: int = parameter(
        0,
        'Latent points of a memory that stay in RAM; those furthest from the camera go to '
        'memory.pages. 0 keeps all.',
        bounds=(0, INT_MAX),
    )
    pages: str = parameter(
        '',
        'Folder for the latent points that memory.resident leaves no room for.',
        writes=True,
    )


@dataclass(frozen=True, kw_only=True)
class RequestParameters:
    replace_older: bool = parameter(
        True,
        'Let a trajectory or path on a topic end the older ones of its client. Goals have a field '
        'for that.',
    )
    max_age: float = parameter(
        30.0,
        "Largest age of the newest image, or of the newest observation in the memory 'driven', "
        'that a request may start from by default [s]; 0 for no limit.',
        bounds=(0.0, 1e9),
    )
    seed: int = parameter(0, 'Random seed of requests that come by topic.')
    steps: int = parameter(
        0,
        'Denoising steps of requests that come by topic; 0 for the default of the model.',
        bounds=(0, 1000),
    )
    prompt: str = parameter(
        '',
        "Text that describes the frames of requests that come by topic; empty for the model's own "
        'text.',
    )
    negative_prompt: str = parameter(
        '', 'Text that describes what the guidance of requests that come by topic leads away from.'
    )
    guidance: float = parameter(
        1.0,
        'Weight of classifier-free guidance of requests that come by topic; 1 is none, more '
        'doubles the time of a step.',
        bounds=(1.0, 100.0),
    )
    memory_frames: bool = parameter(
        False, 'Add decoded readouts of the memory to chunks of requests that come by topic.'
    )
    batch: int = parameter(
        1,
        'Candidates that are generated together if the goal does not set a batch.',
        bounds=(1, 256),
    )
    result_timeout: float = parameter(
        30.0,
        'Time for which the result of a goal can still be fetched [s].',
        bounds=(1.0, 900.0),
    )


@dataclass(frozen=True, kw_only=True)
class LimitParameters:
    queue_size: int = parameter(
        4, 'Waiting requests of a client; more are dropped.', bounds=(1, 64)
    )
    max_goals: int = parameter(
        12, 'Goals of all clients that run or wait; more are rejected.', bounds=(1, 128)
    )
    max_poses: int = parameter(10_000, 'Poses in a trajectory.', bounds=(1, 1_000_000))
    max_frames: int = parameter(512, 'Frames along one path.', bounds=(1, 100_000))
    max_candidates: int = parameter(64, 'Candidates in a request.', bounds=(1, 4096))
    max_memories: int = parameter(8, "Named memories beside 'driven'.", bounds=(1, 1024))
    max_pixels: int = parameter(4096 * 2304, 'Pixels of an input image.', bounds=(1, 2**28))
    max_message_bytes: int = parameter(
        32 * 2**20,
        'Size of a published chunk and of the result of imagine_candidates [bytes]; a larger '
        'message ends its request.',
        bounds=(2**16, 2**30),
    )


@dataclass(frozen=True, kw_only=True)
class CompressionParameters:
    format: str = parameter(
        'auto',
        'Format of the images in chunks and results; auto is jpeg above compression.raw_bytes and '
        'none below.',
        among=('auto', 'none', 'jpeg', 'png'),
    )
    raw_bytes: int = parameter(
        8 * 2**20,
        'Largest chunk or result that compression.format auto sends raw [bytes].',
        bounds=(0, 2**30),
    )
    jpeg_quality: int = parameter(90, 'JPEG quality of images [percent].', bounds=(1, 100))


@dataclass(frozen=True, kw_only=True)
class SensorQosParameters:
    reliability: str = parameter(
        'best_effort',
        'Reliability of the subscriptions to image, camera_info and depth; best_effort matches '
        'all publishers.',
        among=RELIABILITIES,
    )
    depth: int = parameter(
        5, 'Queue depth of the subscriptions to image, camera_info and depth.', bounds=(1, 1000)
    )


@dataclass(frozen=True, kw_only=True)
class PoseQosParameters:
    reliability: str = parameter(
        'best_effort',
        'Reliability of the subscription to odometry or pose; best_effort matches all publishers.',
        among=RELIABILITIES,
    )
    depth: int = parameter(
        100, 'Queue depth of the subscription to odometry or pose.', bounds=(1, 1000)
    )


@dataclass(frozen=True, kw_only=True)
class TfQosParameters:
    reliability: str = parameter(
        'reliable',
        'Reliability of the subscription to /tf, that of tf2_ros by default; best_effort hears '
        'best effort publishers too, and may lose transforms.',
        among=('best_effort', 'reliable'),
    )
    depth: int = parameter(100, 'Queue depth of the subscription to /tf.', bounds=(1, 10_000))


@dataclass(frozen=True, kw_only=True)
class ImaginedQosParameters:
    reliability: str = parameter(
        'reliable',
        'Reliability of the publishers of imagined data.',
        among=RELIABILITIES,
    )
    depth: int = parameter(
        100,
        'Queue depth of the publishers of imagined frames; the frames of a chunk are published at '
        'once.',
        bounds=(1, 10_000),
    )


@dataclass(frozen=True, kw_only=True)
class QosParameters:
    sensor: SensorQosParameters = field(default_factory=SensorQosParameters)
    pose: PoseQosParameters = field(default_factory=PoseQosParameters)
    tf: TfQosParameters = field(default_factory=TfQosParameters)
    imagined: ImaginedQosParameters = field(default_factory=ImaginedQosParameters)


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    period: float = parameter(
        2.0,
        'Period of memory/points and memory/coverage while they have subscribers [s].',
        bounds=(0.1, 3600.0),
    )
    max_points: int = parameter(100_000, 'Points of memory/points.', bounds=(1, 10_000_000))
    grid_resolution: float = parameter(
        0.1, 'Cell size of memory/coverage [m].', bounds=(0.01, 10.0)
    )
    grid_size: int = parameter(
        1024, 'Largest width and height of memory/coverage [cells].', bounds=(16, 8192)
    )


@dataclass(frozen=True, kw_only=True)
class DiagnosticsParameters:
    period: float = parameter(1.0, 'Period of /diagnostics [s].', bounds=(0.1, 60.0))
    warn_chunk_seconds: float = parameter(
        0.0,
        'Warning threshold of the 95th percentile of the time of a chunk [s]; 0 for no warning.',
        bounds=(0.0, 3600.0),
    )
    error_chunk_seconds: float = parameter(
        0.0,
        'Error threshold of the 95th percentile of the time of a chunk [s]; 0 for no error.',
        bounds=(0.0, 3600.0),
    )
    warn_points: int = parameter(
        10_000_000,
        "Warning threshold of the latent points in the memory 'driven'; 0 for no warning.",
        bounds=(0, INT_MAX),
    )
    error_bytes: int = parameter(
        0,
        "Error threshold of the size of the memory 'driven' [bytes]; 0 for no error.",
        bounds=(0, 2**62),
    )


@dataclass(frozen=True, kw_only=True)
class NodeParameters:
    """Parameters of the node. They are read-only while it runs."""

    autostart: bool = parameter(
        True, 'Configure and activate at the start; false leaves that to a lifecycle manager.'
    )
    startup_patience: float = parameter(
        10.0,
        'Time after the activation at which the log names the inputs on which nothing came [s].',
        bounds=(0.1, 3600.0),
    )
    model: ModelParameters = field(default_factory=ModelParameters)
    engine: EngineParameters = field(default_factory=EngineParameters)
    frames: FrameParameters = field(default_factory=FrameParameters)
    tf: TfParameters = field(default_factory=TfParameters)
    path: PathParameters = field(default_factory=PathParameters)
    sensors: SensorParameters = field(default_factory=SensorParameters)
    observe: ObserveParameters = field(default_factory=ObserveParameters)
    keyframe: KeyframeParameters = field(default_factory=KeyframeParameters)
    jump: JumpParameters = field(default_factory=JumpParameters)
    memory: MemoryParameters = field(default_factory=MemoryParameters)
    request: RequestParameters = field(default_factory=RequestParameters)
    limits: LimitParameters = field(default_factory=LimitParameters)
    compression: CompressionParameters = field(default_factory=CompressionParameters)
    qos: QosParameters = field(default_factory=QosParameters)
    view: ViewParameters = field(default_factory=ViewParameters)
    diagnostics: DiagnosticsParameters = field(default_factory=DiagnosticsParameters)

    def __post_init__(self) -> None:
        """Raise ValueError for values that a range cannot exclude."""
        if self.engine.address and self.model.folder:
            raise ValueError(
                f"model.folder: is '{self.model.folder}', but the weights are those of "
                'engine.address, leave one of them empty'
            )
        if self.observe.pose_source == 'tf' and not self.tf.enabled:
            raise ValueError(
                'tf.enabled: is false, but observe.pose_source is tf, which needs /tf'
            )
        frames = self.frames
        for name in ('world', 'base', 'odom', 'imagined_prefix'):
            if not getattr(frames, name):
                raise ValueError(f'frames.{name}: must not be empty')
        Doubts(self.sensors.accept, parameter='sensors.accept')
        if frames.base_from_camera:
            matrix_from_numbers(frames.base_from_camera, name='frames.base_from_camera')
        if self.memory.resident and not self.memory.pages:
            raise ValueError('memory.pages: is empty, memory.resident needs a folder')

    @property
    def engine_place(self) -> str:
        """Return the device, or the address of the server, that generates."""
        return self.engine.address or self.model.device

    @property
    def largest_raw(self) -> int:
        """Largest size of images that the compression auto sends raw [bytes]."""
        return min(self.compression.raw_bytes, self.limits.max_message_bytes)


if __name__ == '__main__':
    print(as_yaml(NodeParameters), end='')
