"""Int8 weights of an ONNX graph, and embeddings that share them with the output layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

LEVELS = 127
SMALLEST = 256
"""Tensors with fewer elements stay in float32."""


def store_int8_(model: onnx.ModelProto) -> list[str]:
    """Store each float32 tensor of two or more dimensions as int8; return their names.

    A scale max |w| / 127 belongs to each output channel, or to each row of an embedding. Cast and
    Mul restore the floats. A runtime computes them once, when it loads the file: onnxruntime does
    not do this for DequantizeLinear, which would run in every call.
    """
    graph = model.graph
    weights = [tensor for tensor in graph.initializer if _is_weight(tensor)]
    channels = _channels(graph)
    nodes: list[onnx.NodeProto] = []
    for tensor in weights:
        values, scale = _quantized(numpy_helper.to_array(tensor), channels.get(tensor.name, 0))
        graph.initializer.remove(tensor)
        graph.initializer.extend(_tensors(tensor.name, values, scale))
        nodes += _restoring(tensor.name)
    _put_first_(graph, nodes)
    return [tensor.name for tensor in weights]


def fold_transposes_(model: onnx.ModelProto) -> dict[str, str]:
    """Replace each transposed weight by a tensor; return its name by the name of the weight.

    onnxruntime quantizes a product with a tensor, but not with the transposed token embedding that
    is the output layer of a transformer too.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer if _is_weight(tensor) and len(tensor.dims) == 2}
    folded: dict[str, str] = {}
    for node in [node for node in graph.node if _is_transpose(node) and node.input[0] in tensors]:
        name = node.input[0]
        value = numpy_helper.to_array(tensors[name]).T
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), node.output[0]))
        graph.node.remove(node)
        folded[name] = node.output[0]
    return folded


def _is_transpose(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and _attribute(node, "perm") in (None, [1, 0])


def share_tables_(model: onnx.ModelProto, folded: Mapping[str, str]) -> None:
    """Let embeddings look up rows of the uint8 matrices that were made of their transposed tables.

    `folded` are the names from `fold_transposes_`. The file then has one copy of the table.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for table, transposed in folded.items():
        matrix, scale, zero = (f"{transposed}_{part}" for part in ("quantized", "scale", "zero_point"))
        if table not in tensors or matrix not in tensors:
            continue
        graph.initializer.remove(tensors[table])
        graph.initializer.append(_column(tensors[scale], f"{table}.scale"))
        graph.initializer.append(_column(tensors[zero], f"{table}.zero"))
        _put_first_(graph, _restoring_transposed(table, matrix))


def _column(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(-1, 1), name)


def _is_weight(tensor: onnx.TensorProto) -> bool:
    """Return True for finite floats that are no vector; masks of attention have infinities."""
    size = math.prod(tensor.dims)
    if tensor.data_type != onnx.TensorProto.FLOAT or size < SMALLEST or size == max(tensor.dims):
        return False
    return bool(np.isfinite(numpy_helper.to_array(tensor)).all())


def _channels(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the axis of the output channels by the name of the weight; the first axis elsewhere."""
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB")):
            found.setdefault(node.input[1], -1)
        elif node.op_type == "ConvTranspose":
            found.setdefault(node.input[1], 1)
    return found


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _quantized(weight: np.ndarray[Any, Any], axis: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return int8 values and float32 scales, which broadcast, of the channels along `axis`."""
    others = tuple(d for d in range(weight.ndim) if d != axis % weight.ndim)
    scale = (np.abs(weight).max(axis=others, keepdims=True) / LEVELS).astype(np.float32)
    scale[scale == 0] = 1
    return np.round(weight / scale).astype(np.int8), scale


def _tensors(name: str, values: np.ndarray[Any, Any], scale: np.ndarray[Any, Any]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(values, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]


def _restoring(name: str) -> list[onnx.NodeProto]:
    """Return the nodes that compute `name` from its int8 values and its scale."""
    cast = helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT)
    return [cast, helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name])]


def _restoring_transposed(name: str, matrix: str) -> list[onnx.NodeProto]:
    """Return the nodes that compute the table `name` from a transposed uint8 matrix."""
    to_float = onnx.TensorProto.FLOAT
    return [
        helper.make_node("Transpose", [matrix], [f"{name}.turned"], perm=[1, 0]),
        helper.make_node("Cast", [f"{name}.turned"], [f"{name}.cast"], to=to_float),
        helper.make_node("Cast", [f"{name}.zero"], [f"{name}.offset"], to=to_float),
        helper.make_node("Sub", [f"{name}.cast", f"{name}.offset"], [f"{name}.centred"]),
        helper.make_node("Mul", [f"{name}.centred", f"{name}.scale"], [name]),
    ]


def _put_first_(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
