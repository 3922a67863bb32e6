from gradoracle.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_PASS: _ClassVar[Verdict]
    VERDICT_FAIL: _ClassVar[Verdict]
    VERDICT_INCONCLUSIVE: _ClassVar[Verdict]
    VERDICT_NON_DIFFERENTIABLE: _ClassVar[Verdict]
    VERDICT_NON_DETERMINISTIC: _ClassVar[Verdict]

class Diagnosis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIAGNOSIS_UNSPECIFIED: _ClassVar[Diagnosis]
    DIAGNOSIS_SIGN_FLIPPED: _ClassVar[Diagnosis]
    DIAGNOSIS_SCALED: _ClassVar[Diagnosis]
    DIAGNOSIS_TRANSPOSED: _ClassVar[Diagnosis]
    DIAGNOSIS_CONJUGATED: _ClassVar[Diagnosis]
    DIAGNOSIS_NOT_REDUCED: _ClassVar[Diagnosis]
    DIAGNOSIS_DUPLICATES_LOST: _ClassVar[Diagnosis]
    DIAGNOSIS_ZEROED: _ClassVar[Diagnosis]
    DIAGNOSIS_IGNORES_COTANGENT: _ClassVar[Diagnosis]
    DIAGNOSIS_SINGLE_ELEMENTS: _ClassVar[Diagnosis]
    DIAGNOSIS_NAN: _ClassVar[Diagnosis]
    DIAGNOSIS_UNKNOWN: _ClassVar[Diagnosis]

class CheckMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHECK_MODE_UNSPECIFIED: _ClassVar[CheckMode]
    CHECK_MODE_PROBE: _ClassVar[CheckMode]
    CHECK_MODE_FULL: _ClassVar[CheckMode]
VERDICT_UNSPECIFIED: Verdict
VERDICT_PASS: Verdict
VERDICT_FAIL: Verdict
VERDICT_INCONCLUSIVE: Verdict
VERDICT_NON_DIFFERENTIABLE: Verdict
VERDICT_NON_DETERMINISTIC: Verdict
DIAGNOSIS_UNSPECIFIED: Diagnosis
DIAGNOSIS_SIGN_FLIPPED: Diagnosis
DIAGNOSIS_SCALED: Diagnosis
DIAGNOSIS_TRANSPOSED: Diagnosis
DIAGNOSIS_CONJUGATED: Diagnosis
DIAGNOSIS_NOT_REDUCED: Diagnosis
DIAGNOSIS_DUPLICATES_LOST: Diagnosis
DIAGNOSIS_ZEROED: Diagnosis
DIAGNOSIS_IGNORES_COTANGENT: Diagnosis
DIAGNOSIS_SINGLE_ELEMENTS: Diagnosis
DIAGNOSIS_NAN: Diagnosis
DIAGNOSIS_UNKNOWN: Diagnosis
CHECK_MODE_UNSPECIFIED: CheckMode
CHECK_MODE_PROBE: CheckMode
CHECK_MODE_FULL: CheckMode

class Mismatch(_message.Message):
    __slots__ = ("index", "claimed", "reference", "numerical", "error", "error_bound", "output", "output_index")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NUMERICAL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_BOUND_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    claimed: _tensor_pb2.Scalar
    reference: _tensor_pb2.Scalar
    numerical: _tensor_pb2.Scalar
    error: float
    error_bound: float
    output: str
    output_index: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[_Iterable[int]] = ..., claimed: _Optional[_Union[_tensor_pb2.Scalar, _Mapping]] = ..., reference: _Optional[_Union[_tensor_pb2.Scalar, _Mapping]] = ..., numerical: _Optional[_Union[_tensor_pb2.Scalar, _Mapping]] = ..., error: _Optional[float] = ..., error_bound: _Optional[float] = ..., output: _Optional[str] = ..., output_index: _Optional[_Iterable[int]] = ...) -> None: ...

class Opinion(_message.Message):
    __slots__ = ("name", "verdict", "error", "error_bound", "explanation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_BOUND_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    verdict: Verdict
    error: float
    error_bound: float
    explanation: str
    def __init__(self, name: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., error: _Optional[float] = ..., error_bound: _Optional[float] = ..., explanation: _Optional[str] = ...) -> None: ...

class Kink(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class InputReport(_message.Message):
    __slots__ = ("name", "verdict", "worst", "diagnosis", "factor", "max_error", "error_bound", "kink", "claim_inside", "explanation", "detection_power", "errors")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    WORST_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSIS_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_BOUND_FIELD_NUMBER: _ClassVar[int]
    KINK_FIELD_NUMBER: _ClassVar[int]
    CLAIM_INSIDE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    DETECTION_POWER_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    name: str
    verdict: Verdict
    worst: _containers.RepeatedCompositeFieldContainer[Mismatch]
    diagnosis: Diagnosis
    factor: float
    max_error: float
    error_bound: float
    kink: Kink
    claim_inside: bool
    explanation: str
    detection_power: float
    errors: _tensor_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., worst: _Optional[_Iterable[_Union[Mismatch, _Mapping]]] = ..., diagnosis: _Optional[_Union[Diagnosis, str]] = ..., factor: _Optional[float] = ..., max_error: _Optional[float] = ..., error_bound: _Optional[float] = ..., kink: _Optional[_Union[Kink, _Mapping]] = ..., claim_inside: bool = ..., explanation: _Optional[str] = ..., detection_power: _Optional[float] = ..., errors: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Rung(_message.Message):
    __slots__ = ("step", "error", "error_bound")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_BOUND_FIELD_NUMBER: _ClassVar[int]
    step: float
    error: float
    error_bound: float
    def __init__(self, step: _Optional[float] = ..., error: _Optional[float] = ..., error_bound: _Optional[float] = ...) -> None: ...

class CheckReport(_message.Message):
    __slots__ = ("verdict", "inputs", "detection_power", "evaluations", "ladder", "opinions", "random_cotangents")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    DETECTION_POWER_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    OPINIONS_FIELD_NUMBER: _ClassVar[int]
    RANDOM_COTANGENTS_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    inputs: _containers.RepeatedCompositeFieldContainer[InputReport]
    detection_power: float
    evaluations: int
    ladder: _containers.RepeatedCompositeFieldContainer[Rung]
    opinions: _containers.RepeatedCompositeFieldContainer[Opinion]
    random_cotangents: bool
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., inputs: _Optional[_Iterable[_Union[InputReport, _Mapping]]] = ..., detection_power: _Optional[float] = ..., evaluations: _Optional[int] = ..., ladder: _Optional[_Iterable[_Union[Rung, _Mapping]]] = ..., opinions: _Optional[_Iterable[_Union[Opinion, _Mapping]]] = ..., random_cotangents: bool = ...) -> None: ...
