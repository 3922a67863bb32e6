"""Graphs as text and as pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gradoracle import dtypes
from gradoracle.v1 import graph_pb2, tensor_pb2


def text(graph: graph_pb2.Graph) -> str:
    """One line for each input, constant, node and output."""
    return "\n".join(_lines(graph))


def _lines(graph: graph_pb2.Graph) -> Iterator[str]:
    for one in graph.inputs:
        yield f"{one.name} = input({input_options(one)})"
    for constant in graph.constants:
        yield f"{constant.name} = constant({tensor_text(constant.value)})"
    for node in graph.nodes:
        note = "  # no_grad" if node.no_grad else ""
        yield f"{node.name} = {node.target}({arguments(node)}){note}"
    for output in graph.outputs:
        yield f"output {output.name} = {output.value}"


def dot(graph: graph_pb2.Graph) -> str:
    """A digraph in Graphviz' language: inputs and constants as boxes, nodes as ellipses, outputs as double boxes."""
    lines = ["digraph gradoracle {", "  rankdir=TB;", '  node [fontname="Helvetica"];']
    lines += [
        f"  {_quoted('v:' + one.name)} [shape=box, label={_label(one.name, input_options(one))}];"
        for one in graph.inputs
    ]
    lines += [
        f"  {_quoted('v:' + one.name)} [shape=box, style=dashed, label={_label(one.name, tensor_text(one.value))}];"
        for one in graph.constants
    ]
    for node in graph.nodes:
        style = ", style=dotted" if node.no_grad else ""
        name = _quoted("v:" + node.name)
        lines.append(f"  {name} [shape=ellipse{style}, label={_label(node.name, node.target)}];")
        lines += [f"  {_quoted('v:' + source)} -> {name};" for source in references(node)]
    for output in graph.outputs:
        name = _quoted("o:" + output.name)
        lines.append(f"  {name} [shape=box, peripheries=2, label={_label(output.name)}];")
        lines.append(f"  {_quoted('v:' + output.value)} -> {name};")
    return "\n".join([*lines, "}"]) + "\n"


def input_options(one: graph_pb2.Input) -> str:
    """What was said of an input beside its name."""
    tracked = one.requires_grad if one.HasField("requires_grad") else True
    options = [] if tracked else ["requires_grad=False"]
    if one.structure:
        name = graph_pb2.Structure.Name(one.structure).removeprefix("STRUCTURE_").lower()
        options.append(f"structure={name}")
    return ", ".join(options)


def tensor_text(tensor: tensor_pb2.Tensor) -> str:
    """ "float64[2, 3]", and the number where it is one."""
    from gradoracle import tensors

    described = f"{dtypes.NAMES.get(tensor.dtype, tensor.dtype)}[{', '.join(map(str, tensor.shape))}]"
    if tensor.HasField("data") and not tensor.shape:
        described += f" {tensors.decode(tensor)[()]}"
    return described


def arguments(node: graph_pb2.Node) -> str:
    """The arguments of a node as they would be typed."""
    given = [_argument(one) for one in node.args]
    return ", ".join(given + [f"{one.name}={_argument(one.argument)}" for one in node.kwargs])


def _argument(argument: graph_pb2.Argument) -> str:
    kind = argument.WhichOneof("kind")
    match kind:
        case "none" | None:
            return "None"
        case "integers":
            return str(list(argument.integers.values))
        case "list":
            return f"[{', '.join(_argument(item) for item in argument.list.items)}]"
        case "complex":
            return str(complex(argument.complex.real, argument.complex.imag))
        case "text":
            return repr(argument.text)
        case "dtype":
            return dtypes.NAMES.get(argument.dtype, str(argument.dtype))
        case "memory_format":
            return graph_pb2.MemoryFormat.Name(argument.memory_format).removeprefix("MEMORY_FORMAT_").lower()
        case "layout":
            return graph_pb2.Layout.Name(argument.layout).removeprefix("LAYOUT_").lower()
    return str(getattr(argument, kind))


def references(node: graph_pb2.Node) -> Iterator[str]:
    """Names that the arguments refer to, each once."""
    found: dict[str, None] = {}
    waiting = [*node.args, *(one.argument for one in node.kwargs)]
    for argument in waiting:
        if argument.HasField("value"):
            found[argument.value] = None
        elif argument.HasField("list"):
            waiting.extend(argument.list.items)
    yield from found


def _label(*lines: str) -> str:
    return _quoted("\n".join(line for line in lines if line))


def _quoted(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)
