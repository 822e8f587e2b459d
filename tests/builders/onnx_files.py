"""A ViT of transformers as an ONNX graph, as torch's exporter writes it: linear weights have lost their names."""

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper


class GraphWriter:
    """Nodes and constants of an exported ViT or DINOv2; `write` gives the bytes of the whole graph.

    `fused`: layer norms are one node, not written out. `cut`: positions are two nameless constants.
    """

    def __init__(self, v4: dict[str, torch.Tensor], heads: int, eps: float, prefix="", fused=False, cut=False) -> None:
        self.v4 = {name: tensor.numpy() for name, tensor in v4.items()}
        self.heads, self.eps, self.prefix, self.fused, self.cut = heads, eps, prefix, fused, cut
        self.constants, self.nodes, self.count = [], [], 1957

    def constant(self, array: np.ndarray, name: str) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def nameless(self, array: np.ndarray, op: str) -> str:
        self.count += 5
        return self.constant(array, f"onnx::{op}_{self.count}")

    def named(self, name: str) -> str:
        return self.constant(self.v4[name], self.prefix + name)

    def node(self, op: str, scope: str, *inputs: str, **attributes) -> str:
        path = f"/{self.prefix}{scope}".replace("layer.", "layer@").replace(".", "/").replace("@", ".")
        name = f"{path}/{op}"
        name += f"_{sum(node.name.startswith(name) for node in self.nodes)}" * any(n.name == name for n in self.nodes)
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def value(self, scope: str, number: float | list[int]) -> str:
        array = np.array(number, np.int64 if isinstance(number, list) else np.float32)
        return self.node("Constant", scope, value=numpy_helper.from_array(array))

    def linear(self, tokens: str, module: str) -> str:
        product = self.node("MatMul", module, tokens, self.nameless(self.v4[f"{module}.weight"].T, "MatMul"))
        if f"{module}.bias" not in self.v4:
            return product
        return self.node("Add", module, self.named(f"{module}.bias"), product)

    def norm(self, tokens: str, module: str) -> str:
        scale, bias = self.named(f"{module}.weight"), self.named(f"{module}.bias")
        if self.fused:
            return self.node("LayerNormalization", module, tokens, scale, bias, axis=-1, epsilon=self.eps)
        centred = self.node("Sub", module, tokens, self.node("ReduceMean", module, tokens, axes=[-1]))
        square = self.node("Pow", module, centred, self.value(module, 2.0))
        variance = self.node("ReduceMean", module, square, axes=[-1])
        root = self.node("Sqrt", module, self.node("Add", module, variance, self.value(module, self.eps)))
        return self.node("Add", module, self.node("Mul", module, self.node("Div", module, centred, root), scale), bias)

    def by_heads(self, tokens: str, scope: str, axes: list[int], columns: int) -> str:
        shape = [
            self.node("Slice", scope, self.node("Shape", scope, tokens), self.value(scope, [0]), self.value(scope, [2]))
        ]
        shape += [self.value(scope, [number]) for number in (self.heads, columns)]
        split = self.node("Reshape", scope, tokens, self.node("Concat", scope, *shape, axis=0))
        return self.node("Transpose", scope, split, perm=axes)

    def attention(self, tokens: str, layer: str) -> str:
        scope = f"{layer}.attention.attention"
        key, value, query = (self.linear(tokens, f"{scope}.{part}") for part in ("key", "value", "query"))
        columns = len(self.v4[f"{scope}.key.weight"]) // self.heads
        key = self.by_heads(key, scope, [0, 2, 3, 1], columns)
        value, query = (self.by_heads(part, scope, [0, 2, 1, 3], columns) for part in (value, query))
        scores = self.node("Mul", scope, self.node("MatMul", scope, query, key), self.value(scope, columns**-0.5))
        mixed = self.node("MatMul", scope, self.node("Softmax", scope, scores, axis=-1), value)
        mixed = self.node("Transpose", scope, mixed, perm=[0, 2, 1, 3])
        joined = self.node("Reshape", scope, mixed, self.value(scope, [0, 0, self.heads * columns]))
        return self.linear(joined, f"{layer}.attention.output.dense")

    def gelu(self, tokens: str, scope: str) -> str:
        bent = self.node("Erf", scope, self.node("Div", scope, tokens, self.value(scope, 2**0.5)))
        product = self.node("Mul", scope, tokens, self.node("Add", scope, bent, self.value(scope, 1.0)))
        return self.node("Mul", scope, product, self.value(scope, 0.5))

    def layer(self, tokens: str, layer: str) -> str:
        v2 = f"{layer}.norm1.weight" in self.v4
        norms = ("norm1", "norm2") if v2 else ("layernorm_before", "layernorm_after")
        first, second = ("mlp.fc1", "mlp.fc2") if v2 else ("intermediate.dense", "output.dense")
        change = self.attention(self.norm(tokens, f"{layer}.{norms[0]}"), layer)
        tokens = self.node("Add", layer, self.scaled(change, f"{layer}.layer_scale1", v2), tokens)
        middle = self.gelu(self.linear(self.norm(tokens, f"{layer}.{norms[1]}"), f"{layer}.{first}"), layer)
        return self.node(
            "Add", layer, self.scaled(self.linear(middle, f"{layer}.{second}"), f"{layer}.layer_scale2", v2), tokens
        )

    def scaled(self, tokens: str, module: str, scaled: bool) -> str:
        return self.node("Mul", module, tokens, self.named(f"{module}.lambda1")) if scaled else tokens

    def embed(self, pictures: str) -> str:
        scope, kernel = "embeddings", "embeddings.patch_embeddings.projection"
        patch, dim = self.v4[f"{kernel}.weight"].shape[2], len(self.v4[f"{kernel}.weight"])
        parts = (self.named(f"{kernel}.{end}") for end in ("weight", "bias"))
        patches = self.node("Conv", kernel, pictures, *parts, strides=[patch, patch])
        patches = self.node(
            "Transpose", scope, self.node("Reshape", scope, patches, self.value(scope, [0, dim, -1])), perm=[0, 2, 1]
        )
        batch = self.node(
            "Slice", scope, self.node("Shape", scope, pictures), self.value(scope, [0]), self.value(scope, [1])
        )
        shape = self.node("Concat", scope, batch, self.value(scope, [1]), self.value(scope, [dim]), axis=0)
        first = self.node("Expand", scope, self.named("embeddings.cls_token"), shape)
        return self.node("Add", scope, self.node("Concat", scope, first, patches, axis=1), self.positions(scope))

    def positions(self, scope: str) -> str:
        if not self.cut:
            return self.named("embeddings.position_embeddings")
        rows = self.v4["embeddings.position_embeddings"]
        patches = self.node("Identity", scope, self.nameless(rows[:, 1:], "Reshape"))
        return self.node("Concat", scope, self.nameless(rows[:, :1], "Concat"), patches, axis=1)

    def write(self, shape: tuple[int, ...]) -> bytes:
        """The graph from pictures of this shape to tokens, and a small decoder beside it."""
        tokens = self.embed("pictures")
        for i in range(1 + max(int(name.split(".")[2]) for name in self.v4 if name.startswith("encoder.layer."))):
            tokens = self.layer(tokens, f"encoder.layer.{i}")
        tokens = self.norm(tokens, "layernorm")
        self.constant(np.ones((3, 2, 1, 1), np.float32), "decoder.upconv1.weight")
        pictures = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, shape)
        out = helper.make_tensor_value_info(tokens, TensorProto.FLOAT, [None, None, None])
        graph = helper.make_graph(self.nodes, "ViT", [pictures], [out], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
