"""uad.training.fold: the folded network computes the same, and each of its modules has a name of its own."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import random_images

from engines.graph import in_backbone
from export.errors import ExportError

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from export.onnx import export_network  # noqa: E402
from uad.data.batches import GoodImages  # noqa: E402
from uad.models.stfpm import STFPM, StudentTeacher  # noqa: E402
from uad.training.fold import Add, fold  # noqa: E402

nn = torch.nn
SIZE = 32
IMAGES = torch.from_numpy(random_images(2, SIZE))


def randomize(module: Any) -> Any:
    """Give every BatchNorm statistics and weights by which folding changes its convolution; evaluation mode."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    return module.eval()


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v2", "efficientnet_lite0"])
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(backbone: str) -> Any:
    torch.manual_seed(0)
    model = STFPM(backbone, "none")
    randomize(model.network)
    good = GoodImages(IMAGES, torch.zeros(len(IMAGES), dtype=torch.long), ["nut"])
    model.fit_readout(good, good)
    return model.network.eval()


@pytest.fixture(scope="module")
def folded(network: Any) -> Any:
    return fold(network)


def assert_close(found: Any, expected: Any) -> None:
    """Equal to a 1e-4th of the greatest value: float32 sums in another order."""
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@torch.no_grad()
def test_folded_network_computes_the_same(network: Any, folded: Any) -> None:
    for expected, found in zip(network.features(IMAGES), folded.features(IMAGES)):
        assert len(expected) == len(found) == 3
        for one, other in zip(expected, found):
            assert_close(other, one)
    others = torch.from_numpy(random_images(2, SIZE, seed=1))
    for one, other in zip(network(others)[:2], folded(others)[:2]):
        assert_close(other, one)


def test_no_batch_norm_is_left_and_every_convolution_has_a_bias(folded: Any) -> None:
    assert not [layer for layer in folded.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    convolutions = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) > 20 and all(layer.bias is not None for layer in convolutions)


def test_names_in_the_exported_graph_are_the_paths_of_modules(folded: Any) -> None:
    nodes = [node for node in export_network(folded, (SIZE, SIZE)).graph.node if in_backbone(node)]
    assert len({node.name for node in nodes}) == len(nodes)
    modules = {}
    for node in nodes:
        path, operator = node.name.strip("/").split("/")[:-1], node.name.split("/")[-1]
        assert operator == node.op_type and len(path) == 2 and path[0] in ("teacher", "student")
        modules[node.name] = folded.get_submodule(".".join(path))
    kinds = {"Conv": nn.Conv2d, "Add": Add, "Relu": nn.ReLU, "Clip": nn.ReLU6, "MaxPool": nn.MaxPool2d}
    assert all(isinstance(modules[node.name], kinds[node.op_type]) for node in nodes)
    assert len({id(module) for module in modules.values()}) == len(nodes)


def test_the_given_network_is_not_changed(network: Any) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    structure = str(network)
    made = fold(network)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(7.0)
    assert str(network) == structure
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_folding_turns_training_mode_off_in_the_copy_alone(network: Any) -> None:
    network.train()
    try:
        made = fold(network)
        assert network.student.training and not any(module.training for module in made.modules())
    finally:
        network.eval()


def test_the_student_is_trained_with_its_biases_and_the_teacher_is_not(folded: Any) -> None:
    student = dict(folded.student.named_parameters())
    assert [name for name in student if name.endswith("bias")]
    assert [name for name, parameter in student.items() if not parameter.requires_grad] == []
    assert [name for name, parameter in folded.teacher.named_parameters() if parameter.requires_grad] == []


# Parts of other shapes ------------------------------------------------------------------------------------------------


class Whole(nn.Module):  # type: ignore[misc,name-defined]
    """A network of one part between an identity and an identity."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.normalize = nn.Identity()
        self.student = part
        self.head = nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.head(self.student(self.normalize(x)))


class Twice(nn.Module):  # type: ignore[misc,name-defined]
    """One convolution and one activation, called twice; a BatchNorm behind the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.activation = nn.ReLU()
        self.normalization = nn.BatchNorm2d(3)

    def forward(self, x: Any) -> Any:
        x = self.activation(self.convolution(x))
        return self.activation(self.normalization(self.convolution(x))) + x


class Between(nn.Module):  # type: ignore[misc,name-defined]
    """The convolution's output is read beside the BatchNorm, so that it cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.normalization = nn.BatchNorm2d(3)

    def forward(self, x: Any) -> Any:
        x = self.convolution(x)
        return self.normalization(x) + x


class Transposed(nn.Module):  # type: ignore[misc,name-defined]
    """A nested transposed convolution with another number of outputs, and a constant that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), nn.BatchNorm2d(5))
        self.register_buffer("offset", torch.full((1, 5, 1, 1), 0.5))

    def forward(self, x: Any) -> Any:
        return self.block(x) + self.offset + 1


@pytest.mark.parametrize("part", [Twice, Between, Transposed])
def test_part_of_another_shape_computes_the_same(part: type) -> None:
    torch.manual_seed(0)
    network = randomize(Whole(part()))
    made = fold(network)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert_close(made(x), network(x))
        assert_close(made(x), network(x))  # no call leaves a trace


def test_module_that_is_called_twice_gets_two_names_and_keeps_one_weight_where_nothing_is_folded() -> None:
    class Shared(Twice):
        def forward(self, x: Any) -> Any:
            return self.activation(self.convolution(self.activation(self.convolution(x))))

    made = fold(Whole(Shared()))
    named = {name: type(module) for name, module in made.student.named_modules() if name}
    assert list(named.values()).count(nn.Conv2d) == 2 and list(named.values()).count(nn.ReLU) == 2
    assert len(list(made.student.parameters())) == 2  # a weight and a bias


def test_part_that_cannot_be_traced_is_an_export_error() -> None:
    class Branching(nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="student cannot be traced by torch.fx"):
        fold(Whole(Branching()))


def test_folded_state_is_loaded_by_a_network_that_is_folded_anew(backbone: str, folded: Any) -> None:
    other = fold(StudentTeacher(backbone, "none"))
    other.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert_close(other(IMAGES)[1], folded(IMAGES)[1])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: nn.functional.max_pool2d(x, 2), "calls max_pool2d as a function: make it a nn.MaxPool2d"),
        (lambda x: torch.max_pool2d(x, 2), "calls max_pool2d as a function"),
        (lambda x: nn.functional.conv2d(x, torch.ones(3, 3, 1, 1)), "calls conv2d as a function: make it a nn.Conv2d"),
        (lambda x: torch.add(x, x, alpha=2), "student adds with alpha: multiply first"),
    ],
)
def test_a_function_that_quantization_would_need_a_name_for_is_refused(function: Any, said: str) -> None:
    class Functional(nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return function(x)

    with pytest.raises(ExportError, match=said):
        fold(Whole(Functional()))


def test_additions_by_method_get_a_name_too() -> None:
    class InPlace(nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return (x * 2).add_(x).add(x)

    made = fold(Whole(InPlace()))
    assert sum(isinstance(module, Add) for module in made.modules()) == 2
    x = torch.randn(2, 3, 8, 8)
    assert_close(made(x), 4 * x)


class Ensemble(nn.Module):  # type: ignore[misc,name-defined]
    """Several students, which have no forward in common."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = nn.Identity()
        self.students = nn.ModuleList(Twice() for _ in range(2))
        self.head = nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.head(torch.stack([student(x) for student in self.students]))


def test_every_member_of_a_list_of_students_is_folded() -> None:
    torch.manual_seed(0)
    network = randomize(Ensemble())
    made = fold(network)
    assert not [layer for layer in made.modules() if isinstance(layer, nn.BatchNorm2d)]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert_close(made(x), network(x))


def test_a_part_without_forward_is_named() -> None:
    with pytest.raises(ExportError, match="student is a ModuleDict, which has no forward of its own"):
        fold(Whole(nn.ModuleDict({"a": nn.Conv2d(3, 3, 1)})))
