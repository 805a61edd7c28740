"""Classes are found, splits are seeded and fair, and every bad file is named."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import SIZE, make_class, noise, save
from PIL import Image

from uad.data import folder
from uad.errors import DataError


def test_classes_are_found_in_a_root_of_classes(tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    make_class(tmp_path, "bolt")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("where the images come from")
    assert list(folder.find_classes(tmp_path)) == ["bolt", "nut"]
    assert list(folder.find_classes(tmp_path, ["nut"])) == ["nut"]


def test_a_single_class_folder_is_a_class(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=4)
    assert list(folder.find_classes(tmp_path / "nut")) == ["nut"]
    assert len(folder.train_samples(tmp_path / "nut")) == 4


def test_a_plain_folder_of_images_is_a_class_without_tests(tmp_path: Path) -> None:
    for index in range(3):
        save(noise(index), tmp_path / "parts" / f"{index}.png")
    samples = folder.train_samples(tmp_path / "parts")
    assert [(sample.class_name, sample.kind) for sample in samples] == [("parts", "good")] * 3
    assert folder.test_samples(tmp_path / "parts") == []


def test_masks_are_matched_by_name_and_may_be_missing(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", good=1, defects=2)
    (tmp_path / "nut/ground_truth/spot/001_mask.png").unlink()
    good, first, second = folder.test_samples(tmp_path)
    assert not good.is_defect and good.mask is None
    assert first.is_defect and first.mask == tmp_path / "nut/ground_truth/spot/000_mask.png"
    assert second.is_defect and second.mask is None


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=2)
    (tmp_path / "nut/train/good/.DS_Store").write_bytes(b"x")
    (tmp_path / "nut/train/good/Thumbs.db").write_bytes(b"x")
    assert len(folder.train_samples(tmp_path)) == 2


def test_a_root_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        folder.find_classes(tmp_path / "absent")


def test_an_empty_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        folder.find_classes(tmp_path)


def test_a_class_without_good_images_is_refused(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=0)
    with pytest.raises(DataError, match="nut"):
        folder.train_samples(tmp_path)


def test_an_unknown_class_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    with pytest.raises(DataError, match="no class screw: it has nut"):
        folder.find_classes(tmp_path, ["screw"])


def test_a_mask_without_an_image_is_refused(tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    save(np.zeros((SIZE, SIZE), np.uint8), tmp_path / "nut/ground_truth/spot/077_mask.png")
    with pytest.raises(DataError, match="077_mask.png"):
        folder.test_samples(tmp_path)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    save(np.zeros((SIZE, SIZE + 1), np.uint8), tmp_path / "nut/ground_truth/spot/001_mask.png")
    with pytest.raises(DataError, match="001_mask.png"):
        folder.check_samples(folder.test_samples(tmp_path))


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=4)
    good = tmp_path / "nut/train/good"
    (good / "empty.png").write_bytes(b"")
    (good / "text.png").write_text("not an image")
    (good / "cut.png").write_bytes((good / "000.png").read_bytes()[:500])
    with pytest.raises(DataError) as refused:
        folder.load_images(folder.train_samples(tmp_path), (16, 16))
    for name in ("3 files", "empty.png", "text.png", "cut.png"):
        assert name in str(refused.value)


def test_images_come_resized_and_in_order(tmp_path: Path) -> None:
    for index, value in enumerate((10, 200, 90)):
        save(np.full((30 + index, 20, 3), value, np.uint8), tmp_path / f"{index}.png")
    images = folder.load_images(folder.train_samples(tmp_path), (8, 12))
    assert images.shape == (3, 8, 12, 3) and images.dtype == np.uint8
    assert [int(image.mean()) for image in images] == [10, 200, 90]


def test_hold_out_is_seeded_and_takes_its_part_of_each_class(tmp_path: Path) -> None:
    make_class(tmp_path, "bolt", train=20)
    make_class(tmp_path, "nut", train=5)
    samples = folder.train_samples(tmp_path)
    training, held = folder.hold_out(samples, 0.1, seed=1)
    assert sorted(sample.class_name for sample in held) == ["bolt", "bolt", "nut"]
    assert sorted(sample.path for sample in training + held) == sorted(sample.path for sample in samples)
    assert folder.hold_out(samples, 0.1, seed=1) == (training, held)
    assert folder.hold_out(samples, 0.1, seed=2) != (training, held)


def test_hold_out_needs_two_images_of_a_class(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=1)
    with pytest.raises(DataError, match="at least two"):
        folder.hold_out(folder.train_samples(tmp_path), 0.1, seed=0)


def test_draw_spreads_over_the_classes(tmp_path: Path) -> None:
    make_class(tmp_path, "bolt", train=20)
    make_class(tmp_path, "nut", train=2)
    samples = folder.train_samples(tmp_path)
    drawn = folder.draw(samples, 6, seed=0)
    assert sorted(sample.class_name for sample in drawn) == ["bolt"] * 4 + ["nut"] * 2
    assert drawn == folder.draw(samples, 6, seed=0)
    assert len({sample.path for sample in folder.draw(samples, 100, seed=0)}) == 22


def test_a_faint_16_bit_mask_counts(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1], [100, 65535]], np.uint16)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(folder.read_mask(tmp_path / "mask.png"), [[False, True], [True, True]])


def test_a_mask_is_resized_by_nearest_neighbour(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :2] = 1  # any value above 0 is a defect
    Image.fromarray(mask).save(tmp_path / "mask.png")
    resized = folder.read_mask(tmp_path / "mask.png", (8, 8))
    assert resized.dtype == bool
    np.testing.assert_array_equal(resized, np.kron(mask, np.ones((2, 2))) > 0)


def test_what_is_held_out_of_a_class_does_not_depend_on_the_other_classes(tmp_path: Path) -> None:
    for name in ("bolt", "nut", "screw"):
        make_class(tmp_path, name, train=20)
    everything = folder.hold_out(folder.train_samples(tmp_path), 0.2, seed=3)[1]
    for name in ("nut", "screw"):
        alone = folder.hold_out(folder.train_samples(tmp_path, [name]), 0.2, seed=3)[1]
        assert alone == [sample for sample in everything if sample.class_name == name]
    places = [[int(s.path.stem) for s in everything if s.class_name == name] for name in ("nut", "screw")]
    assert places[0] != places[1]  # no class has the split of another
