"""Tests of the images that `uad demo` draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from uad.data import synthetic

SIZE = 48
KINDS = [(name, kind) for name, product in synthetic.PRODUCTS.items() for kind in product.defects]


def draw(root: Path, seed: int = 0, n_train: int = 2, size: int = SIZE) -> dict[str, bytes]:
    """Draws a small data set and returns its files by their path under root."""
    synthetic.draw_dataset(root, size=size, n_train=n_train, n_test_good=1, n_test_defect=4, seed=seed)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def dilated(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask grown by one pixel in each direction."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first, again, other = draw(tmp_path / "a"), draw(tmp_path / "b"), draw(tmp_path / "c", seed=1)
    assert first == again
    assert first.keys() == other.keys()
    assert [path for path in first if first[path] == other[path] and "ground_truth" not in path] == []


def test_a_larger_set_contains_the_smaller_one(tmp_path: Path) -> None:
    small, large = draw(tmp_path / "a", n_train=1), draw(tmp_path / "b", n_train=3)
    assert len(large) == len(small) + 2 * len(synthetic.DEMO)
    assert small.items() <= large.items()


def test_no_image_is_drawn_twice(tmp_path: Path) -> None:
    images = [content for path, content in draw(tmp_path).items() if "ground_truth" not in path]
    assert len(set(images)) == len(images)


def test_layout_is_that_of_mvtec(tmp_path: Path) -> None:
    names = synthetic.draw_dataset(tmp_path, size=32, n_train=2, n_test_good=1, n_test_defect=4)
    assert names == synthetic.DEMO == ["fabric", "brushed_metal", "gear", "board", "gasket"]
    for name in names:
        kinds = list(synthetic.PRODUCTS[name].defects)
        files = {path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*.*")}
        stems = [f"{kinds[0]}/000", f"{kinds[0]}/001", f"{kinds[1]}/000", f"{kinds[2]}/000"]
        expected = {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
        expected |= {f"test/{stem}.png" for stem in stems}
        expected |= {f"ground_truth/{stem}_mask.png" for stem in stems}
        assert files == expected


def test_files_are_rgb_images_and_binary_masks_of_their_size(tmp_path: Path) -> None:
    draw(tmp_path)
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as file:
            assert file.mode == ("L" if "ground_truth" in path.parts else "RGB"), path
            assert file.size == (SIZE, SIZE), path
            content = np.asarray(file)
        if "ground_truth" in path.parts:
            assert set(np.unique(content).tolist()) == {0, 255}, path
        else:
            assert content.std() > 10, path


@pytest.mark.parametrize("name, kind", KINDS)
@pytest.mark.parametrize("key", range(5))
def test_mask_is_where_the_defect_changed_the_image(name: str, kind: str, key: int) -> None:
    good, nothing = synthetic.draw_image(name, size=SIZE, key=(key,))
    defective, mask = synthetic.draw_image(name, kind, size=SIZE, key=(key,))
    assert good.shape == defective.shape == (SIZE, SIZE, 3)
    assert good.dtype == defective.dtype == np.uint8
    assert not nothing.any()
    assert 0.001 < mask.mean() < 0.08
    change = np.abs(good.astype(int) - defective).max(axis=-1)
    assert change[~dilated(mask)].max() == 0
    assert np.mean(change[mask] > 0) > 0.8
    assert change[mask].mean() > 12  # of 255; the noise of the sensor is 3


@pytest.mark.parametrize("name, kind", [("gear", "rust"), ("gear", "crack")])
def test_surface_defects_stay_on_the_gear(name: str, kind: str) -> None:
    for key in range(12):
        good, _ = synthetic.draw_image(name, size=SIZE, key=(key,))
        _, mask = synthetic.draw_image(name, kind, size=SIZE, key=(key,))
        on_belt = good.max(axis=-1) < 50
        assert np.mean(on_belt[mask]) < 0.1


@pytest.mark.parametrize("name, kind", KINDS)
def test_mask_cuts_off_no_visible_part_of_the_defect(name: str, kind: str) -> None:
    product = synthetic.PRODUCTS[name]
    for key in range(5):
        scene = product.draw(np.random.default_rng(key), 2 * SIZE)
        repainted, shape = product.defects[kind](scene, np.random.default_rng(key))
        assert np.abs(repainted - scene.image)[~shape & scene.body].max() < 0.1


@pytest.mark.parametrize("key", range(5))
def test_the_background_of_the_gasket_is_saturated_in_every_photograph(key: int) -> None:
    image, _ = synthetic.draw_image("gasket", size=SIZE, key=(key,))
    assert (image[:6] == 255).all() and (image[-6:] == 255).all()
    assert 0.5 < (image == 255).mean() < 0.9


@pytest.mark.parametrize("name", ["gear", "board", "gasket"])
def test_an_object_lies_a_little_differently_in_each_image(name: str) -> None:
    scenes = [synthetic.PRODUCTS[name].draw(np.random.default_rng(key), 2 * SIZE) for key in range(4)]
    assert len({float(scene.x[0, 0]) for scene in scenes}) == len(scenes)
    middles = [(scene.x[SIZE, SIZE], scene.y[SIZE, SIZE]) for scene in scenes]
    assert np.abs(middles).max() < 0.05
    fabric = synthetic.PRODUCTS["fabric"].draw(np.random.default_rng(0), 2 * SIZE)
    between = max(np.abs(scene.image - scenes[0].image).mean() for scene in scenes[1:])
    assert 0 < between < 0.5 * np.abs(scenes[0].image - fabric.image).mean()


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        synthetic.draw_image("gear", size=31)
    with pytest.raises(KeyError):
        synthetic.draw_image("gear", "stain", size=SIZE)


def test_the_tray_is_wrong_only_as_a_whole() -> None:
    found = {"good": set(), "missing_plug": set(), "doubled_plug": set()}  # type: dict[str, set[tuple[bool, ...]]]
    for key in range(12):
        for kind, seen in found.items():
            image, _ = synthetic.draw_image("tray", kind, size=SIZE, key=(key,))
            yellow = image[..., 0].astype(int) - image[..., 2] > 40
            seen.add(tuple(bool(half.any()) for half in (yellow[:, : SIZE // 2], yellow[:, SIZE // 2 :])))
    assert found["good"] == {(True, False), (False, True)}
    assert found["missing_plug"] == {(False, False)} and found["doubled_plug"] == {(True, True)}
