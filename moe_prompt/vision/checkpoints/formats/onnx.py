r"""The weights of a ViT exported to ONNX, under the names that its modules had.

An exporter keeps biases, norms and kernels under their names and loses those of linear maps, which it transposes and
calls `onnx::MatMul_1966`. The name is that of the bias added to the product, or else lies in the name of the node that
multiplies: `/encoder/layer.0/attention/attention/key/MatMul`. Positions may be cut in two, the class token's row and
the patches'. Nothing of the graph is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_prompt.errors import InputError, require
from moe_prompt.vision.checkpoints.formats.base import StoredTensors

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

_NAMED = re.compile(r"(?!onnx::)[^/]*\.[^/]*")
_POSITIONS = {
    "patch_embed.proj.weight": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "embeddings.position_embeddings",
}


def read_onnx(model: Path | bytes, source: str) -> StoredTensors:
    """Named tensors of an ONNX file or its bytes, with heads and epsilon where the graph shows them.

    Raises:
        InputError: naming `source`: not an ONNX graph of a ViT, positions not to be told, or `onnx` is not installed.
    """
    graph = _Graph(_loaded(model, source))
    tensors = {name: tensor for name, tensor in graph.constants.items() if _NAMED.fullmatch(name)}
    tensors |= {name: weight for name, weight in graph.linear_weights() if name not in tensors}
    kernel, positions = _embedding_names(tensors, source)
    dim = len(tensors[kernel])
    if positions not in tensors:
        tensors[positions] = _positions(graph, tensors, dim, f"{source} does not show {positions}")
    return StoredTensors(tensors, source, "ONNX", heads=graph.heads(dim), norm_eps=graph.norm_eps())


def _loaded(model: Path | bytes, source: str) -> GraphProto:
    try:
        import onnx
    except ImportError as error:
        raise InputError(f"{source} is an ONNX file, which needs onnx: pip install 'moe-prompt[vision]'.") from error
    try:
        loaded = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    except Exception as error:  # protobuf's and onnx's own errors share no base
        raise InputError(f"{source} cannot be read as ONNX ({error}): give a whole ONNX file.") from error
    return loaded.graph


def _embedding_names(tensors: Mapping[str, Tensor], source: str) -> tuple[str, str]:
    """The names of the patch embedding's kernel and of the positions that go with it."""
    for name in tensors:
        for kernel, positions in _POSITIONS.items():
            if name == kernel or name.endswith(f".{kernel}"):
                return name, name.removesuffix(kernel) + positions
    raise InputError(
        f"{source} is not the ONNX export of a ViT: it needs a constant named {' or '.join(_POSITIONS)}, got "
        f"{', '.join(list(tensors)[:3]) or 'no named constant'}."
    )


def _positions(graph: _Graph, named: Mapping[str, Tensor], dim: int, problem: str) -> Tensor:
    """The nameless constant (1, rows, d), after the class token's (1, 1, d) where that was cut off."""
    nameless = (tensor for name, tensor in graph.constants.items() if name not in named and tensor.is_floating_point())
    parts = [tensor for tensor in nameless if tensor.ndim == 3 and tensor.shape[::2] == (1, dim)]
    parts.sort(key=lambda part: part.shape[1])
    rows = [part.shape[1] for part in parts]
    require(
        len(rows) in (1, 2) and rows[-1] > 1 and rows[:-1] in ([], [1]),
        f"{problem}: without it, one nameless constant (1, rows, {dim}) is needed and at most one (1, 1, {dim}) for "
        f"the class token; got {len(rows)}, with rows {rows}.",
    )
    return torch.cat(parts, dim=1)


class _Graph:
    """The constants of a graph, and which node makes and uses what."""

    def __init__(self, graph: GraphProto) -> None:
        from onnx import numpy_helper

        self.nodes = list(graph.node)
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                stored[node.output[0]] = node.attribute[0].t
        self.constants = {name: torch.tensor(numpy_helper.to_array(stored[name])) for name in stored}
        for node in self.nodes:  # equal tensors are stored once: the others' names stand for copies of the first
            if node.op_type == "Identity" and node.input[0] in self.constants and _NAMED.fullmatch(node.output[0]):
                self.constants[node.output[0]] = self.constants[node.input[0]]

    def linear_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every constant matrix that tokens are multiplied by, as (out, in), under its module's name."""
        for node in self.nodes:
            weight = self.constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
            if weight is not None and weight.ndim == 2:
                transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                yield f"{self._module(node)}.weight", weight if transposed else weight.mT

    def _module(self, product: NodeProto) -> str:
        """The module of a linear map: by the bias that is added, else by the path in the node's name."""
        for user in self.users.get(product.output[0], []):
            bias = [name for name in user.input if name in self.constants and name.endswith(".bias")]
            if user.op_type == "Add" and bias:
                return bias[0].removesuffix(".bias")
        path = ".".join(product.name.strip("/").split("/")[:-1])
        return re.sub(r"\b(\w+)\.\1\.(\d+)", r"\1.\2", path)  # a called list of modules stands twice in the path

    def heads(self, dim: int) -> int | None:
        """How many heads a linear map's output is cut into: its shape becomes (..., h or -1, dh) with h dh = dim."""
        for node in self.nodes:
            made_by = self.producers.get(node.input[0]) if node.op_type == "Reshape" else None
            if made_by is not None and made_by.op_type in ("Add", "MatMul", "Gemm"):
                *_, heads, columns = (0, 0, *self._integers(node.input[1]))
                if 1 < columns <= dim and heads in (-1, dim / columns):
                    return dim // columns
        return None

    def _integers(self, name: str) -> list[int]:
        """A shape's numbers, 0 for one that is not constant."""
        if name in self.constants:
            return [int(number) for number in self.constants[name].flatten()]
        node = self.producers.get(name)
        if node is not None and node.op_type == "Concat":
            return [number for part in node.input for number in self._integers(part)]
        return [0]

    def norm_eps(self) -> float | None:
        """Epsilon of the layer norms, whole or written out: mean((x - mean)^2) + epsilon."""
        for node in self.nodes:
            if node.op_type == "LayerNormalization":
                return float(next((f"{a.f:.6g}" for a in node.attribute if a.name == "epsilon"), 1e-5))
            added = self.constants.get(node.input[1]) if node.op_type == "Add" else None
            mean = self.producers.get(node.input[0]) if added is not None and added.numel() == 1 else None
            if added is not None and mean is not None and mean.op_type == "ReduceMean":
                return float(f"{added.item():.6g}")
        return None
