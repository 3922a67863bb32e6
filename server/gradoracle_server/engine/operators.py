"""The operators that graphs may name: every functional ATen overload of this torch that is safe to serve.

The vocabulary is read from torch's dispatcher, so it is the running torch's own. What is left out, and why, stands in
`_REFUSALS` and `_refused_by_schema`; nothing is listed by hand as allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import torch

from gradoracle_server.engine.errors import Fault, nearest, suggestion

_REFUSALS: tuple[tuple[str, str], ...] = (
    (r"from_file|_print|_assert_.*|_functional_assert.*|_functional_sym.*|_make_dep_token|save|load.*",
     "reads files, writes to the console or ends the process"),
    # _unsafe_masked_index and its counterpart clamp their indices; as_strided and its copies hold to the storage.
    (r"set|set_.*|_index_put_impl|_copy_from.*|sparse_resize.*|_reshape_alias.*|as_strided_|resize.*|_resize.*"
     r"|_unsafe_(?!masked_index).*|unsafe_.*|.*_unsafe", "swaps a tensor's storage or reaches past its bounds"),
    (r"_add_batch_dim|_remove_batch_dim|_make_dual.*|_unpack_dual|_fw_primal.*|_new_zeros_with_same_feature_meta"
     r"|_has_same_storage_numel|_backward|_version|_lazy_clone", "is autograd's or vmap's own bookkeeping"),
    (r"empty.*|new_empty.*|_empty_.*|empty_strided|empty_like", "returns uninitialised memory; use zeros"),
    (r"_test_.*|_foobar", "is one of torch's self-tests"),
    (r"quantize.*|dequantize.*|q_.*|quantized_.*|_make_per_.*|fbgemm_.*|_choose_qparams.*|choose_qparams.*|qscheme"
     r"|_fused_moving_avg.*|fused_moving_avg.*|_fake_quantize_learnable.*|int_repr.*|_saturate.*|_weight_int.*|_int_mm"
     r"|_convert_weight_to_int.*|_dyn_quant.*|_wrapped_.*|_mixed_dtypes_linear|_cslt.*|_sparse_semi_structured.*"
     r"|_to_sparse_semi_structured", "works on quantized or packed tensors, which have no wire form"),
    (r"_fused_(adam|adamw|sgd|adagrad|rmsprop).*|_amp_.*", "is a fused optimiser step"),
    (r"record_stream|pin_memory|_pin_memory|is_pinned|_cufft_.*|_cuda_.*|_spmm_.*|_grid_.*_fallback",
     "manages a device, not values"),
    (r"mkldnn_.*|_mkldnn_.*|to_mkldnn.*|_to_mkldnn|cudnn_.*|_cudnn_.*|miopen_.*|_miopen_.*|_mps_.*|mps_.*|.*_mps"
     r"|.*vulkan.*|.*xnnpack.*|_nnpack.*|.*_xla.*|thnn_.*_out|_thnn_fused.*|_coreml.*",
     "is one backend's private form of another operator"),
    (r"_nested_.*|nested_.*|to_padded_tensor.*|_jagged_.*|_padded_dense_to_jagged.*|_transformer_encoder_layer_fwd"
     r"|_transform_bias_rescale_qkv|_native_multi_head_attention|_triton_.*|_is_any_true_nested",
     "works on nested tensors, which have no wire form"),
    (r"_sparse_.*tensor.*|_sparse_broadcast_to.*|_coalesced.*|_indices.*|_values.*|_validate_.*"
     r"|_spdiags|_nnz|_dimI|_dimV", "builds or opens sparse tensors without checking their indices"),
    (r"_.*dimname.*|rename.*|refine_names|align_.*", "works on named tensors, which have no wire form"),
    (r"_propagate_xla_data|_has_compatible_shallow_copy_type|sym_.*|_local_scalar_dense|item",
     "returns what a later operator would need at build time, not a tensor"),
    (r"data|_dim_arange|requires_grad_|retain_grad|retains_grad|is_leaf|output_nr|to_here",
     "is part of torch's own API"),
)  # fmt: skip
"""(pattern of the base name, why). The first that matches is given as the reason."""

# The other constructors of sparse tensors (sparse_coo_tensor, sparse_compressed_tensor, …) check their indices only if
# asked to, and everything that works on sparse tensors trusts them.
torch.sparse.check_sparse_tensor_invariants.enable()  # type: ignore[no-untyped-call]

_COMPILED = tuple((re.compile(pattern), why) for pattern, why in _REFUSALS)

_OPAQUE = ("Generator", "Storage", "__torch__", "Stream", "Future", "QScheme")
"""Types of parameters that have no wire form."""

_SERVED_TYPES = re.compile(r"(Optional\[)?(List\[)?(Optional\[)?(Tensor|int|float|bool|number|str|Device)\]*")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """An overload, with what is asked about it often."""

    name: str  # "aten.mul.Tensor"
    overload: torch._ops.OpOverload
    schema: torch.FunctionSchema
    refused: str  # why it is not served, or ""
    numbers: bool  # whether Python numbers may stand for tensors, as in torch.mul(x, 2)
    returns_tuple: bool  # whether getitem nodes take the result apart
    writes: tuple[str, ...]  # parameters whose tensors it changes in place


def dotted(qualified: str) -> str:
    """ "aten::mul.Tensor" -> "aten.mul.Tensor", "aten::relu" -> "aten.relu.default"."""
    namespace, _, rest = qualified.partition("::")
    base, _, overload = rest.partition(".")
    return f"{namespace}.{base}.{overload or 'default'}"


@functools.lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Every ATen overload that the dispatcher knows, served or not, in alphabetical order.

    The dispatcher's list, not `torch.ops`, because the latter also resolves hundreds of overloads of the JIT alone
    (`aten::save`, `aten::manual_seed`).
    """
    return tuple(sorted(dotted(name) for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")))


@functools.lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(names())


def find(name: str) -> Operator | None:
    """The overload of that name ("aten.mul.Tensor"), served or not; None where there is none."""
    return _find_known(name) if name in _known() else None


@functools.cache
def _find_known(name: str) -> Operator:
    namespace, base, overload_name = name.split(".")
    packet = getattr(getattr(torch.ops, namespace), base)
    overload = getattr(packet, overload_name)
    schema = overload._schema
    tuple_result = len(schema.returns) > 1 or any(str(item.type).startswith("List") for item in schema.returns)
    return Operator(
        name=name,
        overload=overload,
        schema=schema,
        refused=_refused_by_name(base) or _refused_by_schema(schema),
        numbers=torch._C._should_allow_numbers_as_tensors(base),
        returns_tuple=tuple_result,
        writes=tuple(one.name for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write),
    )


def serve(name: str, *, node: str, field: str) -> Operator:
    """The served overload of that name. Raises Fault, naming the nearest overloads or the reason of the refusal."""
    operator = find(name)
    if operator is None:
        near = _nearest(name)
        hint = suggestion(near) or '; names read "aten.add.Tensor", list them with ListOperators'
        message = f'node "{node}": no operator "{name}" in torch {torch.__version__}{hint}'
        raise Fault("UNKNOWN_OPERATOR", message, field=field, node=node, target=name, nearest=", ".join(near))
    if operator.refused:
        message = f'node "{node}": "{name}" is not served: it {operator.refused}'
        raise Fault("OPERATOR_REFUSED", message, field=field, node=node, target=name, why=operator.refused)
    return operator


def _nearest(name: str) -> list[str]:
    """Overloads of the same operator first, else the likest names."""
    parts = name.split(".")
    base = parts[1] if len(parts) > 1 else parts[0]
    served = [known for known in names() if known.split(".")[1] == base and not _find_known(known).refused]
    if served:
        likest = nearest(name, served)
        return (likest + [known for known in served if known not in likest])[:3]
    return [known for known in nearest(name, names(), 6) if not _find_known(known).refused][:3]


def _refused_by_name(base: str) -> str:
    for pattern, why in _COMPILED:
        if pattern.fullmatch(base):
            return why
    return ""


def _refused_by_schema(schema: torch.FunctionSchema) -> str:
    """Why an overload cannot be served by its types alone, or ""."""
    if any(argument.is_out for argument in schema.arguments):
        return "writes its result into an argument; use the functional form"
    for argument in schema.arguments:
        kind = str(argument.type)
        if any(opaque in kind for opaque in _OPAQUE):
            if argument.has_default_value():
                continue  # may be left out
            return f'needs a {kind} for "{argument.name}", which has no wire form'
        if not _SERVED_TYPES.fullmatch(kind):
            return f'needs a {kind} for "{argument.name}", which has no wire form'
    if not any("Tensor" in str(item.type) for item in schema.returns):
        return "returns no tensor"
    if any("Dict" in str(item.type) for item in schema.returns):
        return "returns a dictionary"
    return ""


@functools.lru_cache(maxsize=1)
def table() -> tuple[dict[str, str | bool], ...]:
    """Every overload: name, schema, differentiable, random, numbers, refused ("" where served), by torch's own order.

    Overloads of one operator stand in the order in which torch tries them, which decides between two that both fit.
    """
    rows: list[dict[str, str | bool]] = []
    overloads: dict[str, list[str]] = {}
    for name in names():
        overloads.setdefault(name.split(".")[1], []).append(name)
    for base, known in sorted(overloads.items()):
        order = {
            f"aten.{base}.{overload}": place for place, overload in enumerate(getattr(torch.ops.aten, base).overloads())
        }
        for name in sorted(known, key=lambda one: order.get(one, len(order))):
            operator = _find_known(name)
            rows.append(
                {
                    "name": name,
                    "schema": str(operator.schema),
                    "differentiable": differentiable(operator),
                    "random": torch.Tag.nondeterministic_seeded in operator.overload.tags,
                    "numbers": operator.numbers,
                    "refused": operator.refused,
                }
            )
    return tuple(rows)


def differentiable(operator: Operator) -> bool:
    """Whether autograd has a derivative for it, its own or through the operators that it is made of."""
    qualified = str(operator.schema.name)
    if operator.schema.overload_name:
        qualified += f".{operator.schema.overload_name}"
    if not any("Tensor" in str(argument.type) for argument in operator.schema.arguments):
        return False
    if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CompositeImplicitAutograd"):
        return True
    base = operator.schema.name.partition("::")[2]
    # Torch derives these three families from the operators that they are variants of.
    origin = base.removesuffix("_copy").removeprefix("_foreach_")
    origin = origin.removesuffix("_") if not origin.endswith("__") else origin
    return (base in _with_formula() or origin in _with_formula()) and origin != "detach"


@functools.lru_cache(maxsize=1)
def _with_formula() -> frozenset[str]:
    """Base names of the operators for which torch's own table of derivatives has a formula."""
    from importlib import resources

    text = resources.files("torchgen").joinpath("packaged/autograd/derivatives.yaml").read_text(encoding="utf-8")
    found = set()
    for block in re.split(r"^- name: ", text, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        formulas = [
            line
            for line in body.splitlines()
            if re.match(r"  +\w[\w, ]*:", line) and "result" not in line.split(":")[0]
        ]
        if any("non_differentiable" not in line and "output_differentiability" not in line for line in formulas):
            found.add(re.split(r"[.(]", head.strip())[0])
    return frozenset(found)
