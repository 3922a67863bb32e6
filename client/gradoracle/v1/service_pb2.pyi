from gradoracle.v1 import check_pb2 as _check_pb2
from gradoracle.v1 import graph_pb2 as _graph_pb2
from gradoracle.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Timing(_message.Message):
    __slots__ = ("queue", "decode", "plan", "forward", "backward", "check", "encode")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    queue: float
    decode: float
    plan: float
    forward: float
    backward: float
    check: float
    encode: float
    def __init__(self, queue: _Optional[float] = ..., decode: _Optional[float] = ..., plan: _Optional[float] = ..., forward: _Optional[float] = ..., backward: _Optional[float] = ..., check: _Optional[float] = ..., encode: _Optional[float] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("offset", "length")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("token", "use", "spans")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    use: int
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, token: _Optional[bytes] = ..., use: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("outputs", "timing", "spans")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    timing: Timing
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class ComputeVjpRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "cotangents", "wrt", "retain", "batched", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COTANGENTS_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    RETAIN_FIELD_NUMBER: _ClassVar[int]
    BATCHED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    cotangents: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    wrt: _containers.RepeatedScalarFieldContainer[str]
    retain: _containers.RepeatedScalarFieldContainer[str]
    batched: _containers.RepeatedScalarFieldContainer[str]
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., cotangents: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., wrt: _Optional[_Iterable[str]] = ..., retain: _Optional[_Iterable[str]] = ..., batched: _Optional[_Iterable[str]] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class ComputeVjpResponse(_message.Message):
    __slots__ = ("outputs", "gradients", "timing", "spans")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    gradients: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    timing: Timing
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., gradients: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class ComputeJvpRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "tangents", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TANGENTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    tangents: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., tangents: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class ComputeJvpResponse(_message.Message):
    __slots__ = ("outputs", "tangents", "timing", "spans")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TANGENTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    tangents: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    timing: Timing
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., tangents: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class ComputeJacobianRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "of", "wrt", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    of: _containers.RepeatedScalarFieldContainer[str]
    wrt: _containers.RepeatedScalarFieldContainer[str]
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., of: _Optional[_Iterable[str]] = ..., wrt: _Optional[_Iterable[str]] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class JacobianBlock(_message.Message):
    __slots__ = ("output", "input", "tensor")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    output: str
    input: str
    tensor: _tensor_pb2.Tensor
    def __init__(self, output: _Optional[str] = ..., input: _Optional[str] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ComputeJacobianResponse(_message.Message):
    __slots__ = ("outputs", "blocks", "timing", "spans")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    blocks: _containers.RepeatedCompositeFieldContainer[JacobianBlock]
    timing: Timing
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., blocks: _Optional[_Iterable[_Union[JacobianBlock, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class ComputeHessianRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "cotangents", "wrt", "vectors", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COTANGENTS_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    cotangents: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    wrt: _containers.RepeatedScalarFieldContainer[str]
    vectors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., cotangents: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., wrt: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class HessianBlock(_message.Message):
    __slots__ = ("row", "column", "tensor")
    ROW_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    row: str
    column: str
    tensor: _tensor_pb2.Tensor
    def __init__(self, row: _Optional[str] = ..., column: _Optional[str] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ComputeHessianResponse(_message.Message):
    __slots__ = ("outputs", "gradients", "blocks", "products", "timing", "spans")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    gradients: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    blocks: _containers.RepeatedCompositeFieldContainer[HessianBlock]
    products: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    timing: Timing
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., gradients: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., blocks: _Optional[_Iterable[_Union[HessianBlock, _Mapping]]] = ..., products: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class CheckGradientsRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "cotangents", "claimed", "order", "mode", "wrt", "forward_mode", "batched_gradients", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COTANGENTS_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    FORWARD_MODE_FIELD_NUMBER: _ClassVar[int]
    BATCHED_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    cotangents: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    claimed: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    order: int
    mode: _check_pb2.CheckMode
    wrt: _containers.RepeatedScalarFieldContainer[str]
    forward_mode: bool
    batched_gradients: bool
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., cotangents: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., claimed: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., order: _Optional[int] = ..., mode: _Optional[_Union[_check_pb2.CheckMode, str]] = ..., wrt: _Optional[_Iterable[str]] = ..., forward_mode: bool = ..., batched_gradients: bool = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class CheckGradientsResponse(_message.Message):
    __slots__ = ("report", "timing", "spans")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    report: _check_pb2.CheckReport
    timing: Timing
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, report: _Optional[_Union[_check_pb2.CheckReport, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class InspectGraphRequest(_message.Message):
    __slots__ = ("graph", "primals", "device", "seed", "memory")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PRIMALS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    graph: _graph_pb2.Graph
    primals: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    device: str
    seed: int
    memory: SharedMemory
    def __init__(self, graph: _Optional[_Union[_graph_pb2.Graph, _Mapping]] = ..., primals: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., device: _Optional[str] = ..., seed: _Optional[int] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class ValueInfo(_message.Message):
    __slots__ = ("name", "dtype", "shape", "stride", "requires_grad", "is_leaf", "grad_fn", "target", "is_tuple")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_GRAD_FIELD_NUMBER: _ClassVar[int]
    IS_LEAF_FIELD_NUMBER: _ClassVar[int]
    GRAD_FN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    IS_TUPLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: _tensor_pb2.Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    stride: _containers.RepeatedScalarFieldContainer[int]
    requires_grad: bool
    is_leaf: bool
    grad_fn: str
    target: str
    is_tuple: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., stride: _Optional[_Iterable[int]] = ..., requires_grad: bool = ..., is_leaf: bool = ..., grad_fn: _Optional[str] = ..., target: _Optional[str] = ..., is_tuple: bool = ...) -> None: ...

class InspectGraphResponse(_message.Message):
    __slots__ = ("values", "timing")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[ValueInfo]
    timing: Timing
    def __init__(self, values: _Optional[_Iterable[_Union[ValueInfo, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class DescribeServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("name", "description", "workers", "workers_alive", "memory_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_ALIVE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    workers: int
    workers_alive: int
    memory_bytes: int
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., workers: _Optional[int] = ..., workers_alive: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("queue", "queue_bytes", "message_bytes", "graph_nodes", "tensor_bytes", "memory_bytes", "request_seconds")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRAPH_NODES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue: int
    queue_bytes: int
    message_bytes: int
    graph_nodes: int
    tensor_bytes: int
    memory_bytes: int
    request_seconds: float
    def __init__(self, queue: _Optional[int] = ..., queue_bytes: _Optional[int] = ..., message_bytes: _Optional[int] = ..., graph_nodes: _Optional[int] = ..., tensor_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., request_seconds: _Optional[float] = ...) -> None: ...

class DescribeServerResponse(_message.Message):
    __slots__ = ("version", "torch_version", "python_version", "default_device", "devices", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    torch_version: str
    python_version: str
    default_device: str
    devices: _containers.RepeatedCompositeFieldContainer[DeviceInfo]
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., torch_version: _Optional[str] = ..., python_version: _Optional[str] = ..., default_device: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[DeviceInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class ListOperatorsRequest(_message.Message):
    __slots__ = ("name_contains", "include_refused")
    NAME_CONTAINS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_REFUSED_FIELD_NUMBER: _ClassVar[int]
    name_contains: str
    include_refused: bool
    def __init__(self, name_contains: _Optional[str] = ..., include_refused: bool = ...) -> None: ...

class OperatorInfo(_message.Message):
    __slots__ = ("name", "schema", "differentiable", "random", "refused")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    DIFFERENTIABLE_FIELD_NUMBER: _ClassVar[int]
    RANDOM_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    schema: str
    differentiable: bool
    random: bool
    refused: str
    def __init__(self, name: _Optional[str] = ..., schema: _Optional[str] = ..., differentiable: bool = ..., random: bool = ..., refused: _Optional[str] = ...) -> None: ...

class ListOperatorsResponse(_message.Message):
    __slots__ = ("operators", "timing")
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    operators: _containers.RepeatedCompositeFieldContainer[OperatorInfo]
    timing: Timing
    def __init__(self, operators: _Optional[_Iterable[_Union[OperatorInfo, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("calls", "chunks", "cancelled")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[StreamCall]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    cancelled: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, calls: _Optional[_Iterable[_Union[StreamCall, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., cancelled: _Optional[_Iterable[int]] = ...) -> None: ...

class StreamCall(_message.Message):
    __slots__ = ("id", "attachments", "evaluate", "compute_vjp", "compute_jvp", "compute_jacobian", "compute_hessian", "check_gradients", "inspect_graph", "describe_server", "list_operators", "timeout_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_VJP_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_JVP_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_JACOBIAN_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_HESSIAN_FIELD_NUMBER: _ClassVar[int]
    CHECK_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    INSPECT_GRAPH_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_SERVER_FIELD_NUMBER: _ClassVar[int]
    LIST_OPERATORS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    attachments: int
    evaluate: EvaluateRequest
    compute_vjp: ComputeVjpRequest
    compute_jvp: ComputeJvpRequest
    compute_jacobian: ComputeJacobianRequest
    compute_hessian: ComputeHessianRequest
    check_gradients: CheckGradientsRequest
    inspect_graph: InspectGraphRequest
    describe_server: DescribeServerRequest
    list_operators: ListOperatorsRequest
    timeout_seconds: float
    def __init__(self, id: _Optional[int] = ..., attachments: _Optional[int] = ..., evaluate: _Optional[_Union[EvaluateRequest, _Mapping]] = ..., compute_vjp: _Optional[_Union[ComputeVjpRequest, _Mapping]] = ..., compute_jvp: _Optional[_Union[ComputeJvpRequest, _Mapping]] = ..., compute_jacobian: _Optional[_Union[ComputeJacobianRequest, _Mapping]] = ..., compute_hessian: _Optional[_Union[ComputeHessianRequest, _Mapping]] = ..., check_gradients: _Optional[_Union[CheckGradientsRequest, _Mapping]] = ..., inspect_graph: _Optional[_Union[InspectGraphRequest, _Mapping]] = ..., describe_server: _Optional[_Union[DescribeServerRequest, _Mapping]] = ..., list_operators: _Optional[_Union[ListOperatorsRequest, _Mapping]] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("call_id", "attachment", "data", "total")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    attachment: int
    data: bytes
    total: int
    def __init__(self, call_id: _Optional[int] = ..., attachment: _Optional[int] = ..., data: _Optional[bytes] = ..., total: _Optional[int] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("answers", "chunks")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[StreamAnswer]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    def __init__(self, answers: _Optional[_Iterable[_Union[StreamAnswer, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...) -> None: ...

class StreamAnswer(_message.Message):
    __slots__ = ("id", "attachments", "evaluate", "compute_vjp", "compute_jvp", "compute_jacobian", "compute_hessian", "check_gradients", "inspect_graph", "describe_server", "list_operators", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_VJP_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_JVP_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_JACOBIAN_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_HESSIAN_FIELD_NUMBER: _ClassVar[int]
    CHECK_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    INSPECT_GRAPH_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_SERVER_FIELD_NUMBER: _ClassVar[int]
    LIST_OPERATORS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: int
    attachments: int
    evaluate: EvaluateResponse
    compute_vjp: ComputeVjpResponse
    compute_jvp: ComputeJvpResponse
    compute_jacobian: ComputeJacobianResponse
    compute_hessian: ComputeHessianResponse
    check_gradients: CheckGradientsResponse
    inspect_graph: InspectGraphResponse
    describe_server: DescribeServerResponse
    list_operators: ListOperatorsResponse
    status: bytes
    def __init__(self, id: _Optional[int] = ..., attachments: _Optional[int] = ..., evaluate: _Optional[_Union[EvaluateResponse, _Mapping]] = ..., compute_vjp: _Optional[_Union[ComputeVjpResponse, _Mapping]] = ..., compute_jvp: _Optional[_Union[ComputeJvpResponse, _Mapping]] = ..., compute_jacobian: _Optional[_Union[ComputeJacobianResponse, _Mapping]] = ..., compute_hessian: _Optional[_Union[ComputeHessianResponse, _Mapping]] = ..., check_gradients: _Optional[_Union[CheckGradientsResponse, _Mapping]] = ..., inspect_graph: _Optional[_Union[InspectGraphResponse, _Mapping]] = ..., describe_server: _Optional[_Union[DescribeServerResponse, _Mapping]] = ..., list_operators: _Optional[_Union[ListOperatorsResponse, _Mapping]] = ..., status: _Optional[bytes] = ...) -> None: ...
