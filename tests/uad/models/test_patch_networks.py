"""uad.models.patch_networks: an image as a whole is described patch by patch, and where a description lies."""

import pytest

torch = pytest.importorskip("torch")

from engines.errors import UserError  # noqa: E402
from uad.models.patch_networks import NETWORKS, patch_network  # noqa: E402

SIZE = (64, 96)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_image_at_once_is_described_patch_by_patch(name: str) -> None:
    made, network, image = NETWORKS[name], patch_network(name).eval(), torch.randn(1, 3, *SIZE)
    alone = patch_network(name, padded=False).eval()
    alone.load_state_dict(network.state_dict())
    rows, columns = SIZE[0] // made.stride, SIZE[1] // made.stride
    around = torch.nn.functional.pad(image, (made.padding, made.padding + made.stride) * 2)
    with torch.no_grad():
        dense = network(image)
        assert dense.shape == (1, made.channels, rows, columns)
        for row, column in ((0, 0), (rows // 2, 3), (rows - 1, columns - 1)):
            top, left = made.stride * row, made.stride * column
            one = alone(around[:, :, top : top + made.patch, left : left + made.patch])
            assert one.shape == (1, made.channels, 1, 1)
            torch.testing.assert_close(one[..., 0, 0], dense[..., row, column], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_description_sees_its_patch_and_lies_where_the_offset_says(name: str) -> None:
    made, network = NETWORKS[name], patch_network(name).double()
    image = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    cell = 64 // made.stride
    network(image)[0, :, cell, cell].sum().backward()
    assert image.grad is not None
    seen = image.grad.abs().sum(dim=(0, 1, 2)).nonzero()
    first, last = int(seen[0]), int(seen[-1])
    assert last - first < made.patch and last - first + 2 * made.stride > made.patch  # a maximum may pass over an edge
    nominal = made.stride * cell + (made.stride - 1) / 2  # where the pixel of the map lies
    corner = made.stride * cell - made.padding
    assert corner <= first and last < corner + made.patch
    assert nominal - made.offset == corner + (made.patch - 1) / 2


def test_patches_are_those_of_the_papers() -> None:
    assert {name: made.patch for name, made in NETWORKS.items()} == {
        "pdn_s": 33, "pdn_m": 33, "patch17": 17, "patch33": 32, "patch65": 60
    }  # fmt: skip
    for name, kind in (("pdn_s", torch.nn.AvgPool2d), ("patch33", torch.nn.MaxPool2d)):
        assert sum(isinstance(layer, kind) for layer in patch_network(name)) == 2
    for size, name in ((33, "patch33"), (65, "patch65")):
        assert patch_network(name, padded=False)(torch.zeros(1, 3, size, size)).shape == (1, 128, 1, 1)


def test_an_unknown_name_is_said() -> None:
    with pytest.raises(UserError, match="unknown patch network 'vgg': choose one of pdn_s, "):
        patch_network("vgg")
