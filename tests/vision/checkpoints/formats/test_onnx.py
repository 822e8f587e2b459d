"""Weights that an exporter left without a name, from a graph of the real one's structure, against the model's own."""

import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, load_model_from_string, numpy_helper

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.formats.onnx import read_onnx
from tests.builders.onnx_files import GraphWriter
from tests.builders.vit_files import HEADS, IMAGE, model, stored

SHAPE = (2, 3, IMAGE, IMAGE)


def same(read: dict, expected: dict, prefix: str = "") -> None:
    ours = {name.removeprefix(prefix): tensor for name, tensor in read.items() if not name.startswith("decoder")}
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
@pytest.mark.parametrize("cut", [False, True])
def test_every_tensor_by_its_name(tmp_path, kind, cut):
    v4 = {name: tensor for name, tensor in stored(model(kind), tmp_path).items() if "mask_token" not in name}
    graph = GraphWriter(v4, HEADS, 1e-5, "net.backbone.", cut=cut).write(SHAPE)
    assert sum(tensor.name.startswith("onnx::") for tensor in load_model_from_string(graph).graph.initializer) >= 12
    read = read_onnx(graph, "graph")
    same(read.tensors, v4, "net.backbone.")
    assert (read.heads, read.norm_eps, read.container) == (HEADS, 1e-5, "ONNX")


def test_without_biases_the_name_is_that_of_the_node(tmp_path):
    v4 = {
        n: t
        for n, t in stored(model("vit"), tmp_path).items()
        if not n.endswith(("query.bias", "fc1.bias", "key.bias"))
    }
    same(read_onnx(GraphWriter(v4, HEADS, 1e-6).write(SHAPE), "graph").tensors, v4)


def test_equal_tensors_are_stored_once(tmp_path):
    """The exporter keeps one of them and lets Identity nodes stand for the others."""
    v4 = stored(model("vit"), tmp_path)
    v4["layernorm.bias"] = v4["encoder.layer.0.layernorm_before.bias"]
    content = load_model_from_string(GraphWriter(v4, HEADS, 1e-6).write(SHAPE))
    index = [tensor.name for tensor in content.graph.initializer].index("layernorm.bias")
    del content.graph.initializer[index]
    first = helper.make_node("Identity", ["encoder.layer.0.layernorm_before.bias"], ["layernorm.bias"], "Identity_0")
    content.graph.node.insert(0, first)
    same(read_onnx(content.SerializeToString(), "graph").tensors, v4)


def graph(nodes: list, **constants: np.ndarray) -> bytes:
    pictures = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, SHAPE)
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [pictures], [], tensors)).SerializeToString()


def test_timm_names_and_other_ways_to_write_a_linear_map():
    """A called list of blocks stands twice in a path; Gemm may keep (out, in); a constant may be a node."""
    rng = np.random.default_rng(3)
    qkv, proj, fc1, fc2 = (rng.standard_normal(shape) for shape in ((5, 15), (5, 5), (7, 5), (7, 5)))
    constant = numpy_helper.from_array(fc2.astype(np.float32))
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["q"], "/blocks/blocks.0/attn/qkv/MatMul"),
        helper.make_node("MatMul", ["q", "onnx::MatMul_2"], ["p"], "node_31"),
        helper.make_node("Add", ["p", "blocks.0.attn.proj.bias"], ["pb"], "node_32"),
        helper.make_node(
            "Gemm", ["pb", "val_3", "blocks.0.mlp.fc1.bias"], ["f"], "/blocks/blocks.0/mlp/fc1/Gemm", transB=1
        ),
        helper.make_node("Constant", [], ["val_4"], "c", value=constant),
        helper.make_node("MatMul", ["f", "val_4"], ["g"], "/blocks/blocks.0/mlp/fc2/MatMul"),
    ]
    named = {"patch_embed.proj.weight": np.ones((5, 3, 2, 2)), "pos_embed": np.ones((1, 5, 5)), "val_3": fc1}
    named |= {"blocks.0.attn.proj.bias": np.ones(5), "blocks.0.mlp.fc1.bias": np.ones(7)}
    read = read_onnx(graph(nodes, **named, **{"onnx::MatMul_1": qkv, "onnx::MatMul_2": proj}), "graph").tensors
    for name, array in {"attn.qkv": qkv.T, "attn.proj": proj.T, "mlp.fc1": fc1, "mlp.fc2": fc2.T}.items():
        assert read[f"blocks.0.{name}.weight"].numpy().tolist() == array.astype(np.float32).tolist(), name
    assert read["pos_embed"].shape == (1, 5, 5)


def test_heads_and_epsilon_that_are_not_shown():
    named = {"patch_embed.proj.weight": np.ones((6, 3, 2, 2)), "onnx::Add_7": np.ones((1, 5, 6))}
    read = read_onnx(graph([], **named), "graph")
    assert (read.heads, read.norm_eps) == (None, None) and read.tensors["pos_embed"].shape == (1, 5, 6)
    wide = [helper.make_node("Add", ["x", "y"], ["q"], "add")]
    wide += [
        helper.make_node("Reshape", ["q", "s"], ["r"], "cut"),
        helper.make_node("Reshape", ["x", "t"], ["u"], "no"),
    ]
    shapes = {"s": np.array([0, 0, -1, 2]), "t": np.array([0, 0, 2, 3])}
    assert read_onnx(graph(wide[:2], **named, **shapes), "graph").heads == 3
    assert read_onnx(graph(wide[2:], **named, **shapes), "graph").heads is None


@pytest.mark.parametrize("rows", [(), (1,), (5, 5), (1, 5, 5)])
def test_positions_that_cannot_be_told(rows):
    named = {f"onnx::Add_{i}": np.ones((1, count, 6)) for i, count in enumerate(rows)}
    with pytest.raises(InputError, match=r"my.onnx does not show pos_embed"):
        read_onnx(graph([], **named, **{"patch_embed.proj.weight": np.ones((6, 3, 2, 2))}), "my.onnx")


def test_other_graphs(tmp_path):
    with pytest.raises(InputError, match=r"my.onnx is not the ONNX export of a ViT"):
        read_onnx(graph([], **{"conv1.weight": np.ones((6, 3, 2, 2))}), "my.onnx")
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x07\x12\x99\x99")
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        read_onnx(path, str(path))


def test_onnx_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'moe-prompt\[vision\]'"):
        read_onnx(b"", "my.onnx")
