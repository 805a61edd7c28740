"""uad.models.bank and uad.models.patchcore: distances are what they should be, by hand and by another library."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import torch.nn.functional as F  # noqa: E402
from image_folders import make_class  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.metrics import pairwise_distances  # noqa: E402

from engines.errors import UserError  # noqa: E402
from uad.commands.fit import FitOptions, fit  # noqa: E402
from uad.data.batches import GoodImages  # noqa: E402
from uad.models.backbones import backbone_of  # noqa: E402
from uad.models.bank import (  # noqa: E402
    Bank,
    choose_patches,
    distances_of_others,
    k_centre,
    middle_distance,
    squared_distances,
)
from uad.models.dcam import DCAM  # noqa: E402
from uad.models.patchcore import PatchCore  # noqa: E402
from uad.models.reverse_distillation import ReverseDistillation  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training.checkpoint import load_checkpoint  # noqa: E402

SIZE = (64, 96)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def model(**settings: object) -> PatchCore:
    torch.manual_seed(0)
    return PatchCore("mobilenet_v2", "none", **settings).eval()  # type: ignore[arg-type]


def test_a_distance_is_that_to_the_nearest_patch_of_the_class() -> None:
    levels = [noise(3, channels, 2, 3, seed=channels) for channels in (64, 64, 96)]
    patches = [noise(7, 64, seed=1), noise(4, 64, seed=2)]
    bank = Bank(backbone_of("mobilenet_v2"))
    bank.set_patches([(each, torch.arange(len(each))) for each in patches])
    found = bank(levels, torch.tensor([1, 0, 1]))
    assert found.shape == (3, 1, 2, 3)
    for image, label in enumerate([1, 0, 1]):
        places = bank.described(levels)[image].flatten(1).T.numpy()
        expected = pairwise_distances(places, patches[label].numpy()).min(axis=1) ** 2
        np.testing.assert_allclose(found[image].flatten().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(2, 3), (5, 5), (120, 130)])
def test_an_image_lies_as_far_as_half_of_its_places(sides: tuple[int, int]) -> None:
    """TensorRT's TopK gives 3,840 values at most: of more than twice as many places, means over few are taken."""
    distances = noise(4, 1, *sides).abs()
    found = middle_distance(distances**2)
    lower = np.quantile(distances.flatten(1).numpy(), 0.5, axis=1, method="lower")
    np.testing.assert_allclose(found, lower, rtol=1e-6 if sides[0] < 9 else 0.5)
    graph = export_of(lambda maps: middle_distance(maps), distances)
    assert max(sizes_of_topk(graph)) <= 3840


def export_of(function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> onnx.ModelProto:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(Module(), (given,), buffer, opset_version=17, dynamo=False)  # type: ignore[arg-type]
    return onnx.load_from_string(buffer.getvalue())


def sizes_of_topk(graph: onnx.ModelProto) -> list[int]:
    constants = {node.output[0]: node.attribute[0].t for node in graph.graph.node if node.op_type == "Constant"}
    constants.update({each.name: each for each in graph.graph.initializer})
    tops = [node.input[1] for node in graph.graph.node if node.op_type == "TopK"]
    return [int(onnx.numpy_helper.to_array(constants[name]).item()) for name in tops]


def test_the_farthest_good_image_of_a_class_lies_at_1() -> None:
    good = GoodImages(images(24), torch.tensor([0, 1] * 12), ["a", "b"])
    one = model(bank=100)
    one.prepare(good)
    one.fit_readout(good, good)
    head = one.network.head

    def look(image: torch.Tensor) -> list[torch.Tensor]:
        levels = one.network.features(image)
        return [head.bank.described(levels), levels[-1].mean(dim=(2, 3))]

    for maps, _, label in head.bank.beside_others(good, look):  # class by class
        assert float(head.bank.class_distance(maps[-1], label).max()) == pytest.approx(1.0)
    with torch.no_grad():
        *_, own = one.network(good.image)
        *_, of_nothing = one.network(torch.full_like(good.image, 255))
    assert own.max() < 1.0 < of_nothing.min()


def test_a_place_is_described_by_its_principal_components_and_the_root_of_their_deviations() -> None:
    mixed = torch.einsum("nchw,cd->ndhw", noise(40, 224, 4, 4), noise(224, 224, seed=1))
    levels = [[each.contiguous() for each in half.split([64, 64, 96], dim=1)] for half in (mixed[:20], mixed[20:])]
    bank = Bank(backbone_of("mobilenet_v2"))
    bank.fit_projection(levels)
    averaged, found = (
        torch.cat([look(each) for each in levels]).transpose(0, 1).flatten(1).T.numpy()
        for look in (bank.averaged, bank.described)
    )
    np.testing.assert_allclose(averaged[5], F.avg_pool2d(mixed, 3, 1, 1)[0, :, 1, 1], rtol=1e-4, atol=1e-4)
    components = PCA(64, svd_solver="full").fit((averaged - averaged.mean(axis=0)) / averaged.std(axis=0))
    expected = components.transform((averaged - averaged.mean(axis=0)) / averaged.std(axis=0))
    expected /= (expected**2).mean(axis=0) ** 0.25
    np.testing.assert_allclose(pairwise_distances(found[:50]), pairwise_distances(expected[:50]), rtol=1e-2, atol=1e-2)


def test_images_that_do_not_vary_give_a_projection_all_the_same() -> None:
    bank = Bank(backbone_of("mobilenet_v2"))
    levels = [torch.ones(2, channels, 3, 3) for channels in (64, 64, 96)]
    levels[0] = levels[0] * torch.arange(2.0)[:, None, None, None]  # but in one direction
    bank.fit_projection([levels])
    assert bank.weight.isfinite().all() and bank.described(levels).abs().max() < 50


def test_centres_lie_far_apart_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [4.0], [9.0]])
    assert k_centre(points, 4).tolist() == [0, 2, 3, 1]
    assert k_centre(points, 9).tolist()[:4] == [0, 2, 3, 1] and len(set(k_centre(points, 9).tolist())) == 5


def test_every_place_lies_nearer_to_chosen_patches_than_to_as_many_by_chance() -> None:
    features = noise(20, 16, 8, 8).pow(3)
    patches, _ = choose_patches(features, 64)
    places = features.flatten(2).transpose(1, 2).flatten(0, 1)
    by_chance = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:64]]
    farthest = [torch.cdist(places, each).amin(dim=1).max() for each in (patches, by_chance)]
    assert farthest[0] < 0.8 * farthest[1]


def test_an_image_is_put_beside_the_patches_of_others() -> None:
    features = noise(4, 6, 3, 3)
    patches, image_of = choose_patches(features, 36)  # all of them
    assert squared_distances(features, patches.T[None], patches.square().sum(dim=1)[None, None]).max() < 1e-4
    maps = distances_of_others(features, patches.T, image_of)
    for image in range(4):
        places, others = (
            features[chosen].transpose(0, 1).flatten(1).T.numpy()
            for chosen in ([image], [each for each in range(4) if each != image])
        )
        expected = pairwise_distances(places, others).min(axis=1) ** 2
        np.testing.assert_allclose(maps[image].flatten().numpy(), expected, rtol=1e-4)


def test_patches_and_statistics_are_those_of_each_class_in_any_order() -> None:
    pixels, label = images(9), torch.tensor([1, 0, 2, 0, 1, 2, 2, 0, 1])
    found = []
    for order in (list(range(9)), sorted(range(9), key=label.__getitem__)):
        one = model(bank=20)
        good = GoodImages(pixels, label, ["a", "b", "c"]).at(order)
        one.prepare(good)
        one.fit_readout(good, good)
        found.append(one.network.state_dict())
    assert found[0]["head.bank.patches"].shape == (3, 64, 20)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4)


def test_a_new_good_image_scores_like_those_that_the_bank_is_made_of_without_their_own_patches() -> None:
    """If own patches counted, the statistics would be of distances near 0, and every new image be defective."""
    one, good = model(bank=500), GoodImages(images(24), torch.zeros(24, dtype=torch.int64), ["a"])
    one.prepare(good)
    one.fit_readout(good, good)
    with torch.no_grad():
        new = one.network(images(12, seed=1))[1]
        old = one.network(good.image)[1]
    assert 0.2 < new.mean() < 4.0 and old.mean() < 0.5 * new.mean()


@pytest.mark.parametrize("kind", [STFPM, DCAM, ReverseDistillation])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_a_bank_beside_a_student_is_that_of_patchcore(kind: type, backbone: str) -> None:
    """The same teacher, images and seed: the same patches, wherever the teacher's levels stand."""
    good = GoodImages(images(8), torch.tensor([0, 1] * 4), ["a", "b"])
    torch.manual_seed(0)
    alone = PatchCore(backbone, "none", bank=20).eval()
    beside = kind(backbone, "none", bank=20).eval()
    beside.network.teacher.load_state_dict(alone.network.teacher.state_dict(), strict=False)
    for one in (alone, beside):
        one.prepare(good)
        one.fit_readout(good, good)
    one, other = (each.network.head for each in (alone, beside))
    torch.testing.assert_close(one.bank.patches, other.bank.patches, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        distances = one.bank(alone.network.features(good.image), good.label)
        teacher, _ = beside.network.features(good.image)
        torch.testing.assert_close(
            other.bank(other.levels_of_bank(teacher), good.label), distances, rtol=1e-3, atol=1e-3
        )
    student = kind(backbone, "none").eval()  # a student alone has neither a bank nor the bank's levels
    assert not [name for name in student.network.state_dict() if ".bank." in name]
    assert len(student.network.features(good.image)[0]) == 3


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(UserError, match="--model.bank 0: give at least 1 patch"):
        model(bank=0)
    with pytest.raises(UserError, match="--model.bank -1: give a number of patches, or 0 for no bank"):
        STFPM(weights="none", bank=-1)
    with pytest.raises(UserError, match="paper has no place for a bank: give --model.bank 0"):
        ReverseDistillation(weights="none", bank=9, readout="paper")
    one, good = model(bank=1), GoodImages(images(4), torch.tensor([0, 0, 1, 1]), ["a", "b"])
    one.prepare(good)
    with pytest.raises(UserError, match="all patches of a class are of one image: give a greater --model.bank"):
        one.fit_readout(good, good)
    one, good = model(), GoodImages(images(3), torch.tensor([0, 0, 1]), ["a", "b"])
    one.prepare(good)
    with pytest.raises(UserError, match="give more of b"):
        one.fit_readout(good, good)


def test_a_run_takes_no_step_and_holds_nothing_to_train(tmp_path: Path) -> None:
    for name in ("bolt", "nut"):
        make_class(tmp_path / "images", name, train=8)
    data = {"root": tmp_path / "images", "image_size": SIZE}
    ckpt = fit(FitOptions(tmp_path / "run", data, {"name": "patchcore", "weights": "none", "bank": 50}))
    assert not (tmp_path / "run" / "last.ckpt").exists() and not (tmp_path / "run" / "train.csv").exists()
    info = load_checkpoint(ckpt).info
    assert (info.model, info.map_stride, set(info.thresholds)) == ("patchcore", 16, {"bolt", "nut"})
    with pytest.raises(UserError, match="holds nothing that is trained: uad export --precision int8"):
        fit(FitOptions(tmp_path / "qat", data, ckpt=ckpt))
