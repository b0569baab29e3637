from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_UNSPECIFIED: _ClassVar[Rule]
    RULE_OPTIMIZER: _ClassVar[Rule]
    RULE_MEAN: _ClassVar[Rule]
    RULE_SUM: _ClassVar[Rule]
    RULE_EQUAL: _ClassVar[Rule]
    RULE_FROZEN: _ClassVar[Rule]

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    INIT: _ClassVar[Kind]
    PUSH: _ClassVar[Kind]
    ABSENT: _ClassVar[Kind]
    NORMS: _ClassVar[Kind]
    READY: _ClassVar[Kind]
    RECEIPT: _ClassVar[Kind]
    PARAMS: _ClassVar[Kind]
    PROBE: _ClassVar[Kind]
    ORDER: _ClassVar[Kind]
    RESTORE: _ClassVar[Kind]
    STATE: _ClassVar[Kind]
    ACTIVATIONS: _ClassVar[Kind]
    GRADIENTS: _ClassVar[Kind]
    AGREE: _ClassVar[Kind]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    ACCEPTED: _ClassVar[Verdict]
    DUPLICATE: _ClassVar[Verdict]
    ALREADY_APPLIED: _ClassVar[Verdict]
    EARLY: _ClassVar[Verdict]
    FENCED: _ClassVar[Verdict]
    DIVERGED: _ClassVar[Verdict]
    FOREIGN_RUN: _ClassVar[Verdict]
    MALFORMED: _ClassVar[Verdict]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    SERVER: _ClassVar[Role]
    WORKER: _ClassVar[Role]

class Event(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_UNSPECIFIED: _ClassVar[Event]
    EPOCH: _ClassVar[Event]
    FINISHED: _ClassVar[Event]
    FAILED: _ClassVar[Event]
RULE_UNSPECIFIED: Rule
RULE_OPTIMIZER: Rule
RULE_MEAN: Rule
RULE_SUM: Rule
RULE_EQUAL: Rule
RULE_FROZEN: Rule
KIND_UNSPECIFIED: Kind
INIT: Kind
PUSH: Kind
ABSENT: Kind
NORMS: Kind
READY: Kind
RECEIPT: Kind
PARAMS: Kind
PROBE: Kind
ORDER: Kind
RESTORE: Kind
STATE: Kind
ACTIVATIONS: Kind
GRADIENTS: Kind
AGREE: Kind
VERDICT_UNSPECIFIED: Verdict
ACCEPTED: Verdict
DUPLICATE: Verdict
ALREADY_APPLIED: Verdict
EARLY: Verdict
FENCED: Verdict
DIVERGED: Verdict
FOREIGN_RUN: Verdict
MALFORMED: Verdict
ROLE_UNSPECIFIED: Role
SERVER: Role
WORKER: Role
EVENT_UNSPECIFIED: Event
EPOCH: Event
FINISHED: Event
FAILED: Event

class Member(_message.Message):
    __slots__ = ("rank", "stage", "incarnation", "generation", "session", "lands_shared")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LANDS_SHARED_FIELD_NUMBER: _ClassVar[int]
    rank: int
    stage: int
    incarnation: int
    generation: int
    session: int
    lands_shared: bool
    def __init__(self, rank: _Optional[int] = ..., stage: _Optional[int] = ..., incarnation: _Optional[int] = ..., generation: _Optional[int] = ..., session: _Optional[int] = ..., lands_shared: bool = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "dtype", "rule", "group", "stage")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    rule: Rule
    group: int
    stage: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., rule: _Optional[_Union[Rule, str]] = ..., group: _Optional[int] = ..., stage: _Optional[int] = ...) -> None: ...

class Environment(_message.Message):
    __slots__ = ("host", "pid", "python", "torch", "pserver", "num_threads", "cpu_capability")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    PSERVER_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    CPU_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    host: str
    pid: int
    python: str
    torch: str
    pserver: str
    num_threads: int
    cpu_capability: str
    def __init__(self, host: _Optional[str] = ..., pid: _Optional[int] = ..., python: _Optional[str] = ..., torch: _Optional[str] = ..., pserver: _Optional[str] = ..., num_threads: _Optional[int] = ..., cpu_capability: _Optional[str] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("name", "size_bytes", "nonce")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    nonce: bytes
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class SharedStore(_message.Message):
    __slots__ = ("segment", "nonce_at", "oldest_at", "words_at", "even_at", "odd_at")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    NONCE_AT_FIELD_NUMBER: _ClassVar[int]
    OLDEST_AT_FIELD_NUMBER: _ClassVar[int]
    WORDS_AT_FIELD_NUMBER: _ClassVar[int]
    EVEN_AT_FIELD_NUMBER: _ClassVar[int]
    ODD_AT_FIELD_NUMBER: _ClassVar[int]
    segment: SharedMemory
    nonce_at: int
    oldest_at: int
    words_at: int
    even_at: int
    odd_at: int
    def __init__(self, segment: _Optional[_Union[SharedMemory, _Mapping]] = ..., nonce_at: _Optional[int] = ..., oldest_at: _Optional[int] = ..., words_at: _Optional[int] = ..., even_at: _Optional[int] = ..., odd_at: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("member", "tensors", "chunk_digests", "environment", "steps_per_epoch", "total_steps", "validate_every", "own_loop", "shared")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_EVERY_FIELD_NUMBER: _ClassVar[int]
    OWN_LOOP_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    member: Member
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    chunk_digests: _containers.RepeatedScalarFieldContainer[int]
    environment: Environment
    steps_per_epoch: int
    total_steps: int
    validate_every: int
    own_loop: bool
    shared: SharedMemory
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., chunk_digests: _Optional[_Iterable[int]] = ..., environment: _Optional[_Union[Environment, _Mapping]] = ..., steps_per_epoch: _Optional[int] = ..., total_steps: _Optional[int] = ..., validate_every: _Optional[int] = ..., own_loop: bool = ..., shared: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("version", "shard", "num_servers", "num_chunks", "session", "reads_shared", "store", "skipped")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SERVERS_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    READS_SHARED_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    version: int
    shard: int
    num_servers: int
    num_chunks: int
    session: int
    reads_shared: bool
    store: SharedStore
    skipped: bool
    def __init__(self, version: _Optional[int] = ..., shard: _Optional[int] = ..., num_servers: _Optional[int] = ..., num_chunks: _Optional[int] = ..., session: _Optional[int] = ..., reads_shared: bool = ..., store: _Optional[_Union[SharedStore, _Mapping]] = ..., skipped: bool = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("tensors", "version", "steps_per_epoch", "total_steps", "validate_every", "own_loop", "chunk_digests")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_EVERY_FIELD_NUMBER: _ClassVar[int]
    OWN_LOOP_FIELD_NUMBER: _ClassVar[int]
    CHUNK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    version: int
    steps_per_epoch: int
    total_steps: int
    validate_every: int
    own_loop: bool
    chunk_digests: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., version: _Optional[int] = ..., steps_per_epoch: _Optional[int] = ..., total_steps: _Optional[int] = ..., validate_every: _Optional[int] = ..., own_loop: bool = ..., chunk_digests: _Optional[_Iterable[int]] = ...) -> None: ...

class InitReply(_message.Message):
    __slots__ = ("num_stored",)
    NUM_STORED_FIELD_NUMBER: _ClassVar[int]
    num_stored: int
    def __init__(self, num_stored: _Optional[int] = ...) -> None: ...

class Passed(_message.Message):
    __slots__ = ("dtype", "shape", "strides", "needs_gradient")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STRIDES_FIELD_NUMBER: _ClassVar[int]
    NEEDS_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    strides: _containers.RepeatedScalarFieldContainer[int]
    needs_gradient: bool
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., strides: _Optional[_Iterable[int]] = ..., needs_gradient: bool = ...) -> None: ...

class FrameHeader(_message.Message):
    __slots__ = ("kind", "member", "step", "first_chunk", "num_chunks", "dtype", "digests", "weight", "sequence", "receipt_may_wait", "verdict", "detail", "norms_shard", "norms", "clock_s", "complete_s", "last_rank", "format", "shared", "places", "frame_bytes", "ready_s", "link_bytes_per_s", "slot", "updates", "micro", "passed")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_MAY_WAIT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    NORMS_SHARD_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_S_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_S_FIELD_NUMBER: _ClassVar[int]
    LAST_RANK_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    READY_S_FIELD_NUMBER: _ClassVar[int]
    LINK_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    MICRO_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    member: Member
    step: int
    first_chunk: int
    num_chunks: int
    dtype: str
    digests: _containers.RepeatedScalarFieldContainer[int]
    weight: float
    sequence: int
    receipt_may_wait: bool
    verdict: Verdict
    detail: str
    norms_shard: int
    norms: _containers.RepeatedScalarFieldContainer[float]
    clock_s: float
    complete_s: float
    last_rank: int
    format: str
    shared: bool
    places: _containers.RepeatedScalarFieldContainer[int]
    frame_bytes: int
    ready_s: _containers.RepeatedScalarFieldContainer[float]
    link_bytes_per_s: float
    slot: int
    updates: _containers.RepeatedScalarFieldContainer[int]
    micro: int
    passed: _containers.RepeatedCompositeFieldContainer[Passed]
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., member: _Optional[_Union[Member, _Mapping]] = ..., step: _Optional[int] = ..., first_chunk: _Optional[int] = ..., num_chunks: _Optional[int] = ..., dtype: _Optional[str] = ..., digests: _Optional[_Iterable[int]] = ..., weight: _Optional[float] = ..., sequence: _Optional[int] = ..., receipt_may_wait: bool = ..., verdict: _Optional[_Union[Verdict, str]] = ..., detail: _Optional[str] = ..., norms_shard: _Optional[int] = ..., norms: _Optional[_Iterable[float]] = ..., clock_s: _Optional[float] = ..., complete_s: _Optional[float] = ..., last_rank: _Optional[int] = ..., format: _Optional[str] = ..., shared: bool = ..., places: _Optional[_Iterable[int]] = ..., frame_bytes: _Optional[int] = ..., ready_s: _Optional[_Iterable[float]] = ..., link_bytes_per_s: _Optional[float] = ..., slot: _Optional[int] = ..., updates: _Optional[_Iterable[int]] = ..., micro: _Optional[int] = ..., passed: _Optional[_Iterable[_Union[Passed, _Mapping]]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("header", "padding", "receipts", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: FrameHeader
    padding: bytes
    receipts: _containers.RepeatedCompositeFieldContainer[FrameHeader]
    payload: bytes
    def __init__(self, header: _Optional[_Union[FrameHeader, _Mapping]] = ..., padding: _Optional[bytes] = ..., receipts: _Optional[_Iterable[_Union[FrameHeader, _Mapping]]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("member", "version", "first_chunk", "num_chunks", "format")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    member: Member
    version: int
    first_chunk: int
    num_chunks: int
    format: str
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., version: _Optional[int] = ..., first_chunk: _Optional[int] = ..., num_chunks: _Optional[int] = ..., format: _Optional[str] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("version", "rate_factor")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RATE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    version: int
    rate_factor: float
    def __init__(self, version: _Optional[int] = ..., rate_factor: _Optional[float] = ...) -> None: ...

class DecideReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("model", "version", "decided", "rate_factor")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    RATE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    model: JoinRequest
    version: int
    decided: int
    rate_factor: float
    def __init__(self, model: _Optional[_Union[JoinRequest, _Mapping]] = ..., version: _Optional[int] = ..., decided: _Optional[int] = ..., rate_factor: _Optional[float] = ...) -> None: ...

class RestoreReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("role", "index", "stage", "environment", "data_address", "control_address")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    index: int
    stage: int
    environment: Environment
    data_address: str
    control_address: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., index: _Optional[int] = ..., stage: _Optional[int] = ..., environment: _Optional[_Union[Environment, _Mapping]] = ..., data_address: _Optional[str] = ..., control_address: _Optional[str] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("incarnation", "generation", "servers")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    generation: int
    servers: _containers.RepeatedCompositeFieldContainer[ServerAddress]
    def __init__(self, incarnation: _Optional[int] = ..., generation: _Optional[int] = ..., servers: _Optional[_Iterable[_Union[ServerAddress, _Mapping]]] = ...) -> None: ...

class ServerAddress(_message.Message):
    __slots__ = ("shard", "data_address", "control_address")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    data_address: str
    control_address: str
    def __init__(self, shard: _Optional[int] = ..., data_address: _Optional[str] = ..., control_address: _Optional[str] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("shard", "member")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    shard: int
    member: Member
    def __init__(self, shard: _Optional[int] = ..., member: _Optional[_Union[Member, _Mapping]] = ...) -> None: ...

class LocateReply(_message.Message):
    __slots__ = ("server",)
    SERVER_FIELD_NUMBER: _ClassVar[int]
    server: ServerAddress
    def __init__(self, server: _Optional[_Union[ServerAddress, _Mapping]] = ...) -> None: ...

class SavedRequest(_message.Message):
    __slots__ = ("role", "index", "incarnation", "version", "size_bytes", "digests", "state_digests", "error", "stage")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    role: Role
    index: int
    incarnation: int
    version: int
    size_bytes: int
    digests: _containers.RepeatedScalarFieldContainer[int]
    state_digests: _containers.RepeatedScalarFieldContainer[int]
    error: str
    stage: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., index: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., size_bytes: _Optional[int] = ..., digests: _Optional[_Iterable[int]] = ..., state_digests: _Optional[_Iterable[int]] = ..., error: _Optional[str] = ..., stage: _Optional[int] = ...) -> None: ...

class SavedReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DepositRequest(_message.Message):
    __slots__ = ("role", "index", "incarnation", "version", "offset", "data", "stage")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    role: Role
    index: int
    incarnation: int
    version: int
    offset: int
    data: bytes
    stage: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., index: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., stage: _Optional[int] = ...) -> None: ...

class DepositReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("member", "offset")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    member: Member
    offset: int
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class WithdrawReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InspectReply(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[ProcessState]
    def __init__(self, processes: _Optional[_Iterable[_Union[ProcessState, _Mapping]]] = ...) -> None: ...

class ProcessState(_message.Message):
    __slots__ = ("role", "index", "environment", "step", "doing", "waits_for", "silent_s", "stacks", "is_away")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    IS_AWAY_FIELD_NUMBER: _ClassVar[int]
    role: Role
    index: int
    environment: Environment
    step: int
    doing: str
    waits_for: _containers.RepeatedScalarFieldContainer[int]
    silent_s: float
    stacks: str
    is_away: bool
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., index: _Optional[int] = ..., environment: _Optional[_Union[Environment, _Mapping]] = ..., step: _Optional[int] = ..., doing: _Optional[str] = ..., waits_for: _Optional[_Iterable[int]] = ..., silent_s: _Optional[float] = ..., stacks: _Optional[str] = ..., is_away: bool = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("role", "index", "incarnation", "step", "rows", "exchanging", "doing", "waits_for", "stacks", "stage")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGING_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    role: Role
    index: int
    incarnation: int
    step: int
    rows: _containers.RepeatedScalarFieldContainer[str]
    exchanging: bool
    doing: str
    waits_for: _containers.RepeatedScalarFieldContainer[int]
    stacks: str
    stage: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., index: _Optional[int] = ..., incarnation: _Optional[int] = ..., step: _Optional[int] = ..., rows: _Optional[_Iterable[str]] = ..., exchanging: bool = ..., doing: _Optional[str] = ..., waits_for: _Optional[_Iterable[int]] = ..., stacks: _Optional[str] = ..., stage: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("stop", "wants_stacks", "came_s", "answered_s")
    STOP_FIELD_NUMBER: _ClassVar[int]
    WANTS_STACKS_FIELD_NUMBER: _ClassVar[int]
    CAME_S_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_S_FIELD_NUMBER: _ClassVar[int]
    stop: bool
    wants_stacks: bool
    came_s: float
    answered_s: float
    def __init__(self, stop: bool = ..., wants_stacks: bool = ..., came_s: _Optional[float] = ..., answered_s: _Optional[float] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("member", "event", "version", "validation_names", "validation_sums", "training_names", "training_sums", "error_type", "error", "traceback")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_NAMES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_SUMS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_NAMES_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SUMS_FIELD_NUMBER: _ClassVar[int]
    ERROR_TYPE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    member: Member
    event: Event
    version: int
    validation_names: _containers.RepeatedScalarFieldContainer[str]
    validation_sums: _containers.RepeatedScalarFieldContainer[float]
    training_names: _containers.RepeatedScalarFieldContainer[str]
    training_sums: _containers.RepeatedScalarFieldContainer[float]
    error_type: str
    error: str
    traceback: str
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., event: _Optional[_Union[Event, str]] = ..., version: _Optional[int] = ..., validation_names: _Optional[_Iterable[str]] = ..., validation_sums: _Optional[_Iterable[float]] = ..., training_names: _Optional[_Iterable[str]] = ..., training_sums: _Optional[_Iterable[float]] = ..., error_type: _Optional[str] = ..., error: _Optional[str] = ..., traceback: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("stop", "version")
    STOP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    stop: bool
    version: int
    def __init__(self, stop: bool = ..., version: _Optional[int] = ...) -> None: ...
