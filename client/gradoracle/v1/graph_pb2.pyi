from gradoracle.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Structure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STRUCTURE_UNSPECIFIED: _ClassVar[Structure]
    STRUCTURE_SYMMETRIC: _ClassVar[Structure]
    STRUCTURE_HERMITIAN: _ClassVar[Structure]
    STRUCTURE_LOWER_TRIANGULAR: _ClassVar[Structure]
    STRUCTURE_UPPER_TRIANGULAR: _ClassVar[Structure]
    STRUCTURE_POSITIVE_DEFINITE: _ClassVar[Structure]

class MemoryFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_FORMAT_UNSPECIFIED: _ClassVar[MemoryFormat]
    MEMORY_FORMAT_CONTIGUOUS: _ClassVar[MemoryFormat]
    MEMORY_FORMAT_PRESERVE: _ClassVar[MemoryFormat]
    MEMORY_FORMAT_CHANNELS_LAST: _ClassVar[MemoryFormat]
    MEMORY_FORMAT_CHANNELS_LAST_3D: _ClassVar[MemoryFormat]

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYOUT_UNSPECIFIED: _ClassVar[Layout]
    LAYOUT_STRIDED: _ClassVar[Layout]
    LAYOUT_SPARSE_COO: _ClassVar[Layout]
    LAYOUT_SPARSE_CSR: _ClassVar[Layout]
    LAYOUT_SPARSE_CSC: _ClassVar[Layout]
    LAYOUT_SPARSE_BSR: _ClassVar[Layout]
    LAYOUT_SPARSE_BSC: _ClassVar[Layout]
STRUCTURE_UNSPECIFIED: Structure
STRUCTURE_SYMMETRIC: Structure
STRUCTURE_HERMITIAN: Structure
STRUCTURE_LOWER_TRIANGULAR: Structure
STRUCTURE_UPPER_TRIANGULAR: Structure
STRUCTURE_POSITIVE_DEFINITE: Structure
MEMORY_FORMAT_UNSPECIFIED: MemoryFormat
MEMORY_FORMAT_CONTIGUOUS: MemoryFormat
MEMORY_FORMAT_PRESERVE: MemoryFormat
MEMORY_FORMAT_CHANNELS_LAST: MemoryFormat
MEMORY_FORMAT_CHANNELS_LAST_3D: MemoryFormat
LAYOUT_UNSPECIFIED: Layout
LAYOUT_STRIDED: Layout
LAYOUT_SPARSE_COO: Layout
LAYOUT_SPARSE_CSR: Layout
LAYOUT_SPARSE_CSC: Layout
LAYOUT_SPARSE_BSR: Layout
LAYOUT_SPARSE_BSC: Layout

class Graph(_message.Message):
    __slots__ = ("inputs", "constants", "nodes", "outputs", "functions")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    constants: _containers.RepeatedCompositeFieldContainer[Constant]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    functions: _containers.RepeatedCompositeFieldContainer[Function]
    def __init__(self, inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., constants: _Optional[_Iterable[_Union[Constant, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., functions: _Optional[_Iterable[_Union[Function, _Mapping]]] = ...) -> None: ...

class Function(_message.Message):
    __slots__ = ("name", "forward", "backward")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    name: str
    forward: Graph
    backward: Graph
    def __init__(self, name: _Optional[str] = ..., forward: _Optional[_Union[Graph, _Mapping]] = ..., backward: _Optional[_Union[Graph, _Mapping]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "requires_grad", "structure")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_GRAD_FIELD_NUMBER: _ClassVar[int]
    STRUCTURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    requires_grad: bool
    structure: Structure
    def __init__(self, name: _Optional[str] = ..., requires_grad: bool = ..., structure: _Optional[_Union[Structure, str]] = ...) -> None: ...

class Constant(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: _tensor_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "target", "args", "kwargs", "no_grad")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    KWARGS_FIELD_NUMBER: _ClassVar[int]
    NO_GRAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    target: str
    args: _containers.RepeatedCompositeFieldContainer[Argument]
    kwargs: _containers.RepeatedCompositeFieldContainer[NamedArgument]
    no_grad: bool
    def __init__(self, name: _Optional[str] = ..., target: _Optional[str] = ..., args: _Optional[_Iterable[_Union[Argument, _Mapping]]] = ..., kwargs: _Optional[_Iterable[_Union[NamedArgument, _Mapping]]] = ..., no_grad: bool = ...) -> None: ...

class Argument(_message.Message):
    __slots__ = ("value", "none", "integer", "real", "boolean", "complex", "text", "dtype", "device", "memory_format", "layout", "list", "integers")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    NONE_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    COMPLEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FORMAT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    value: str
    none: Nothing
    integer: int
    real: float
    boolean: bool
    complex: _tensor_pb2.Complex
    text: str
    dtype: _tensor_pb2.Dtype
    device: str
    memory_format: MemoryFormat
    layout: Layout
    list: ArgumentList
    integers: IntList
    def __init__(self, value: _Optional[str] = ..., none: _Optional[_Union[Nothing, _Mapping]] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., boolean: bool = ..., complex: _Optional[_Union[_tensor_pb2.Complex, _Mapping]] = ..., text: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., device: _Optional[str] = ..., memory_format: _Optional[_Union[MemoryFormat, str]] = ..., layout: _Optional[_Union[Layout, str]] = ..., list: _Optional[_Union[ArgumentList, _Mapping]] = ..., integers: _Optional[_Union[IntList, _Mapping]] = ...) -> None: ...

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IntList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class ArgumentList(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Argument]
    def __init__(self, items: _Optional[_Iterable[_Union[Argument, _Mapping]]] = ...) -> None: ...

class NamedArgument(_message.Message):
    __slots__ = ("name", "argument")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    argument: Argument
    def __init__(self, name: _Optional[str] = ..., argument: _Optional[_Union[Argument, _Mapping]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
