"""engines.model_file: a file from elsewhere is read, or refused in one line; it is never followed out of its folder."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
from graphs import save_tiny
from onnx import TensorProto, helper

from engines.errors import ModelFileError, UserError
from engines.model_file import info_of, load_model
from export.check import TARGETS, check_model
from export.quantize import insert_qdq

OPERATORS = ("Conv", "QuantizeLinear", "DequantizeLinear", "Add", "MaxPool", "Constant", "Resize", "Clip")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[onnx.ModelProto]:
    """A model in float, and with Q/DQ nodes."""
    model = load_model(save_tiny(tmp_path_factory.mktemp("tiny") / "a.onnx"))
    from export.placement import place

    placement = place(model)
    return [model, insert_qdq(model, dict.fromkeys(placement.ranged(), 1.0), placement)[0]]


def refused(model: onnx.ModelProto, path: Path) -> str:
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_cycle_is_refused(tiny: list[onnx.ModelProto], tmp_path: Path) -> None:
    for model in tiny:
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        broken.graph.node[0].input[0] = broken.graph.node[-1].output[0]
        assert "is not a valid ONNX graph" in refused(broken, tmp_path / "a.onnx")


@pytest.mark.parametrize("inside", [False, True])
def test_constants_in_another_file_are_refused(inside: bool, tiny: list[onnx.ModelProto], tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny[0])
    tensor = helper.make_tensor("secret", TensorProto.FLOAT, [1], b"\0" * 4, raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    if inside:
        body = helper.make_graph([], "body", [], [], [tensor])
        model.graph.node.append(helper.make_node("Loop", [], ["never"], body=body))
    else:
        model.graph.initializer.append(tensor)
    assert "secret lies in another file" in refused(model, tmp_path / "a.onnx")


def test_a_foreign_operator_with_a_name_of_onnx_is_refused(tiny: list[onnx.ModelProto], tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny[1])
    next(node for node in model.graph.node if node.op_type == "QuantizeLinear").domain = "elsewhere"
    assert "QuantizeLinear of 'elsewhere'" in refused(model, tmp_path / "a.onnx")


@pytest.mark.parametrize("seed", range(300))
def test_a_graph_that_was_tampered_with_is_read_or_refused(
    seed: int, tiny: list[onnx.ModelProto], tmp_path: Path
) -> None:
    choice = random.Random(seed)
    model = onnx.ModelProto()
    model.CopyFrom(choice.choice(tiny))
    for _ in range(choice.randint(1, 3)):
        _tamper(model, choice)
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    for target in (*TARGETS, None):
        try:
            loaded = load_model(path)
            if target is None:
                info_of(loaded, path)
            else:
                check_model(loaded, target)
        except UserError:
            pass


def _tamper(model: onnx.ModelProto, choice: random.Random) -> None:
    node, tensor = choice.choice(model.graph.node), choice.choice(model.graph.initializer)
    place = choice.randrange(len(node.input)) if node.input else None
    kind = choice.randrange(11)
    if kind == 0 and place is not None:
        del node.input[place]
    elif kind == 1:
        del node.input[:]
    elif kind == 2:
        del node.output[:]
    elif kind == 3:
        del node.attribute[:]
    elif kind == 4 and place is not None:
        node.input[place] = next(iter(choice.choice(model.graph.node).output), "")
    elif kind == 5 and place is not None:
        node.input[place] = "nobody"
    elif kind == 6:
        node.op_type = choice.choice(OPERATORS)
    elif kind == 7:
        node.domain = "elsewhere"
    elif kind == 8:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif kind == 9:
        del tensor.dims[:]
        tensor.dims.extend(choice.choice([[0], [], [3, -1], [10**9, 10**9]]))
    else:
        tensor.data_type = choice.choice([0, 1, 3, 7, 99])
