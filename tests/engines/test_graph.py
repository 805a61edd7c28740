"""engines.graph: the small vocabulary for ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import node_of, tiny
from onnx import helper

from engines.graph import (
    attribute,
    constants,
    consumers,
    in_backbone,
    producers,
    remove_unused_constants,
    rename_input,
    sort_nodes,
)


def test_backbone_is_what_is_neither_normalisation_nor_head() -> None:
    model = tiny()
    inside = {node.name.split("/")[1] for node in model.graph.node if in_backbone(node)}
    outside = {node.name.split("/")[1] for node in model.graph.node if not in_backbone(node)}
    assert inside == {"teacher", "student"}
    assert outside == {"normalize", "head"}


def test_constants_are_the_initializers() -> None:
    model = tiny()
    values = constants(model)
    assert list(values) == [tensor.name for tensor in model.graph.initializer]
    assert values["teacher/conv1.weight"].shape == (4, 3, 3, 3)
    assert values["head.half"] == np.float32(0.5)


def test_producers_name_the_node_of_each_output() -> None:
    made_by = producers(tiny())
    assert made_by["/head/TopK_output_1"].name == "/head/TopK"
    assert "image" not in made_by and "head.k" not in made_by


def test_consumers_are_in_graph_order_and_each_once() -> None:
    read_by = consumers(tiny())
    readers = [node.name for node in read_by["/teacher/layer1/relu2/Relu_output_0"]]
    assert readers[:2] == ["/teacher/layer2/conv1/Conv", "/teacher/layer2/downsample/Conv"]
    # x * x reads x twice
    assert readers[2:] == ["/head/fine/teacher/Mul", "/head/fine/teacher/Div"]


def test_attribute_left_to_its_default_is_none() -> None:
    conv = node_of(tiny(), "/teacher/conv1/Conv")
    assert attribute(conv, "strides") == [2, 2]
    assert attribute(conv, "dilations") is None


def test_rename_input_renames_every_occurrence() -> None:
    node = helper.make_node("Mul", ["a", "a"], ["b"])
    rename_input(node, "a", "c")
    assert list(node.input) == ["c", "c"]


def test_remove_unused_constants_keeps_the_used_ones() -> None:
    model = tiny()
    before = set(constants(model))
    node_of(model, "/teacher/conv1/Conv").input[1] = "student/conv1.weight"
    remove_unused_constants(model)
    assert set(constants(model)) == before - {"teacher/conv1.weight"}


def test_sort_nodes_repairs_a_reversed_graph() -> None:
    model = tiny()
    reversed_nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(reversed_nodes)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    sort_nodes(model)
    onnx.checker.check_model(model)
    assert len(model.graph.node) == len(reversed_nodes)


def test_sort_nodes_keeps_an_order_that_is_valid() -> None:
    model = tiny()
    before = [node.name for node in model.graph.node]
    sort_nodes(model)
    assert [node.name for node in model.graph.node] == before


def test_sort_nodes_names_a_node_of_a_cycle() -> None:
    model = tiny()
    node_of(model, "/teacher/layer1/conv1/Conv").input[0] = "/teacher/layer1/conv2/Conv_output_0"
    with pytest.raises(ValueError, match="/teacher/layer1/conv1/Conv"):
        sort_nodes(model)
