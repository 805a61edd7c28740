"""export.onnx: a torch network to the graph that the rest of the project reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import random_images, reference_outputs

from engines.graph import constants, in_backbone
from export.check import check_model
from export.errors import ExportError
from export.onnx import export_network

torch = pytest.importorskip("torch", reason="torch is not installed")

nn = torch.nn


class Normalize(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, image):  # type: ignore[no-untyped-def]
        return (image.float().permute(0, 3, 1, 2) - 128) / 64


class Head(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, features):  # type: ignore[no-untyped-def]
        pixels = (features * features).sum(1)
        return pixels.flatten(1).amax(1), pixels


class Network(nn.Module):  # type: ignore[misc,name-defined]
    """Two convolutions with batch normalisation; `between` stands in front of the first normalisation."""

    def __init__(self, between: list[nn.Module]) -> None:
        super().__init__()
        self.normalize = Normalize()
        first, second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.teacher = nn.Sequential(first, *between, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(4))
        self.head = Head()

    def forward(self, image):  # type: ignore[no-untyped-def]
        return self.head(self.teacher(self.normalize(image)))


def network(*between: nn.Module) -> Network:
    torch.manual_seed(0)
    made = Network(list(between))
    for layer in made.teacher:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return export_network(network(), (8, 12))


def test_contract_of_inputs_and_outputs(exported: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported)
    (image,), outputs = exported.graph.input, exported.graph.output
    assert image.name == "image" and image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ["batch", 8, 12, 3]
    assert [value.name for value in outputs] == ["score", "anomaly_map"]
    assert {value.type.tensor_type.elem_type for value in outputs} == {onnx.TensorProto.FLOAT}
    assert [entry.version for entry in exported.opset_import] == [17]  # the newest that TensorRT 8.5 reads


def test_graph_computes_what_the_network_does(exported: onnx.ModelProto) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    with torch.no_grad():
        score, pixels = network()(torch.from_numpy(images))
    found = reference_outputs(exported, images, ["score", "anomaly_map"])
    np.testing.assert_allclose(found[0], score.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found[1], pixels.numpy(), rtol=1e-3, atol=1e-3)


def test_submodules_bound_the_backbone(exported: onnx.ModelProto) -> None:
    inside = [node.op_type for node in exported.graph.node if in_backbone(node)]
    assert inside == ["Conv", "Relu", "Conv"]
    assert [node.op_type for node in exported.graph.node][0] == "Cast"  # before Transpose: TensorRT takes uint8 so


def test_constants_and_equal_biases_are_initializers(exported: onnx.ModelProto) -> None:
    twice = network()
    with torch.no_grad():
        for layer in (twice.teacher[1], twice.teacher[4]):
            for values, value in ((layer.weight, 1), (layer.bias, 0), (layer.running_mean, 0), (layer.running_var, 1)):
                values.fill_(value)
    model = export_network(twice, (8, 8))
    onnx.checker.check_model(model)
    for graph in (exported, model):
        assert not {node.op_type for node in graph.graph.node} & {"Constant", "Identity"}
        fixed = constants(graph)
        assert all(name in fixed for node in graph.graph.node if node.op_type == "Conv" for name in node.input[1:])


def test_every_target_takes_the_graph(exported: onnx.ModelProto) -> None:
    assert check_model(exported, "jetson-xavier-nx") == []


def test_network_in_training_mode_is_exported_for_evaluation() -> None:
    images = random_images(2, size=8)
    model = export_network(network().train(), (8, 8))
    with torch.no_grad():
        score = network()(torch.from_numpy(images))[0]
    np.testing.assert_allclose(reference_outputs(model, images, ["score"])[0], score.numpy(), rtol=1e-4)


def test_batch_norm_that_cannot_be_folded_is_named() -> None:
    with pytest.raises(ExportError, match="/teacher/.*BatchNormalization was not folded into a convolution"):
        export_network(network(nn.ReLU()), (8, 8))


class Unknown(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return torch.linalg.matrix_exp(x)


class Failing(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        raise RuntimeError("this layer fails")


@pytest.mark.parametrize("layer", [Unknown, Failing])
def test_layer_that_torch_cannot_export_is_an_export_error(layer: type) -> None:
    with pytest.raises(ExportError, match="torch cannot export this model") as error:
        export_network(network(layer()), (8, 8))
    assert "\n" not in str(error.value)


# A graph that would lie is not made --------------------------------------------------------------------------------


class Rooted(Network):
    """Computes something itself, where no child's name says whether it is backbone or head."""

    def forward(self, image):  # type: ignore[no-untyped-def]
        return self.head(self.teacher(self.normalize(image)) * 2)


class Branching(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x if x.mean() > 0 else -x


class OtherWhenTraced(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x * (2.0 if torch.jit.is_tracing() else 1.0)


class OneImageOnly(nn.Module):  # type: ignore[misc,name-defined]
    """Folds the batch into one row when it is traced, so that only batches of one would be right."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + x.mean(dim=0, keepdim=True) if torch.jit.is_tracing() else x + x


class NotFinite(nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x / torch.zeros_like(x)


def rooted() -> Rooted:
    made = Rooted([])
    made.load_state_dict(network().state_dict())
    return made.eval()


def ending(layer: nn.Module) -> Network:
    made = network()
    made.teacher.append(layer)
    return made


def test_an_operation_of_the_network_itself_is_refused() -> None:
    with pytest.raises(ExportError, match="/Mul is computed by the network itself: move it into one of normalize"):
        export_network(rooted(), (8, 8))


def test_what_tracing_would_lose_is_refused_with_its_place() -> None:
    with pytest.raises(ExportError, match=r"test_onnx.py:\d+ cannot be traced: Converting a tensor to a Python bool"):
        export_network(ending(Branching()), (8, 8))


@pytest.mark.parametrize("layer", [OtherWhenTraced, OneImageOnly])
def test_a_graph_that_computes_something_else_is_refused(layer: type) -> None:
    with pytest.raises(ExportError, match="of the graph is not that of torch: it differs by"):
        export_network(ending(layer()), (8, 8))


def test_a_graph_is_held_to_another_network_where_that_is_given() -> None:
    other = network()
    with torch.no_grad():
        other.teacher[0].weight.mul_(1.1)
    with pytest.raises(ExportError, match="is not that of torch"):
        export_network(network(), (8, 8), beside=other)


def test_a_network_that_gives_no_number_is_refused() -> None:
    with pytest.raises(ExportError, match="the score of a test image is not finite"):
        export_network(ending(NotFinite()), (8, 8))
