"""Classes are found, splits are seeded and fair, and every bad file is named."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from graphs import tiny_info
from image_folders import SIZE, make_class, noise, save
from PIL import Image

from engines.errors import UadWarning
from uad.data import folder, reading
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
    assert not good.is_defect and good.masks == ()
    assert first.is_defect and first.masks == (tmp_path / "nut/ground_truth/spot/000_mask.png",)
    assert second.is_defect and second.masks == ()


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
        reading.check_samples(folder.test_samples(tmp_path))


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=4)
    good = tmp_path / "nut/train/good"
    (good / "empty.png").write_bytes(b"")
    (good / "text.png").write_text("not an image")
    (good / "cut.png").write_bytes((good / "000.png").read_bytes()[:500])
    with pytest.raises(DataError) as refused:
        reading.load_images(folder.train_samples(tmp_path), (16, 16))
    for name in ("3 files", "empty.png", "text.png", "cut.png"):
        assert name in str(refused.value)


def test_images_come_resized_and_in_order(tmp_path: Path) -> None:
    for index, value in enumerate((10, 200, 90)):
        save(np.full((30 + index, 20, 3), value, np.uint8), tmp_path / f"{index}.png")
    images = reading.load_images(folder.train_samples(tmp_path), (8, 12))
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


@pytest.mark.parametrize("name", ["Good", "ok", "OK", "GOOD"])
def test_good_images_have_several_names(name: str, tmp_path: Path) -> None:
    folder_of = make_class(tmp_path, "nut", train=4, good=2, defects=3)
    for part in ("train", "test"):
        (folder_of / part / "good").rename(folder_of / part / name)
    assert len(folder.train_samples(tmp_path)) == 4
    assert [sample.kind for sample in folder.test_samples(tmp_path)] == ["good"] * 2 + ["spot"] * 3


def test_two_names_of_good_beside_each_other_are_both_good(tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", train=4, good=2, defects=3)
    for part in ("train", "test"):
        save(noise(7), nut / part / "OK" / "000.png")
    assert len(folder.train_samples(tmp_path)) == 5
    assert [sample.kind for sample in folder.test_samples(tmp_path)].count("good") == 3


def test_hidden_folders_are_passed_over_everywhere(tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", train=2, good=2, defects=2)
    make_class(tmp_path, ".backup")
    make_class(tmp_path, "__MACOSX")
    for place in (
        "train/.ipynb_checkpoints",
        "train/good/.ipynb_checkpoints",
        "test/.ipynb_checkpoints",
        "test/spot/.thumbs",
    ):
        save(noise(1), nut / place / "x.png")
    save(noise(1), nut / "ground_truth/.ipynb_checkpoints/x.png")
    assert list(folder.find_classes(tmp_path)) == ["nut"]
    assert len(folder.train_samples(tmp_path)) == 2 and len(folder.test_samples(tmp_path)) == 4


def test_images_in_subfolders_are_found_with_their_masks(tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", train=4, good=2, defects=4)
    for part, names in (("train/good", ["002.png", "003.png"]), ("test/spot", ["001.png", "003.png"])):
        (nut / part / "day2").mkdir()
        for name in names:
            (nut / part / name).rename(nut / part / "day2" / name)
    (nut / "ground_truth/spot/day2").mkdir()
    (nut / "ground_truth/spot/003_mask.png").rename(nut / "ground_truth/spot/day2/003_mask.png")
    assert len(folder.train_samples(tmp_path)) == 4
    spots = [sample for sample in folder.test_samples(tmp_path) if sample.is_defect]
    assert [sample.path.stem for sample in spots] == ["000", "002", "001", "003"]
    assert all(sample.masks[0].stem == f"{sample.path.stem}_mask" for sample in spots)


def test_a_class_of_images_alone_beside_one_with_tests_is_taken_and_named(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=4)
    for index in range(3):
        save(noise(index), tmp_path / "bolt" / f"{index}.png")
    with pytest.warns(UadWarning, match="bolt without train and test, taken as good images"):
        assert len(folder.train_samples(tmp_path)) == 7
    assert list(folder.find_classes(tmp_path)) == ["bolt", "nut"]


def test_classes_may_all_be_folders_of_images(tmp_path: Path) -> None:
    for name in ("bolt", "nut"):
        save(noise(1), tmp_path / name / "1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(folder.find_classes(tmp_path)) == ["bolt", "nut"]
    assert folder.test_samples(tmp_path) == []


def test_what_is_no_image_by_name_is_passed_over(tmp_path: Path) -> None:
    good = make_class(tmp_path, "nut", train=2) / "train" / "good"
    for name in ("000.json", "notes.txt", "thumbs.db", "._000.png"):
        (good / name).write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folder.train_samples(tmp_path)) == 2
    (good / "video.mp4").write_text("x")
    with pytest.warns(UadWarning, match="1 file passed over, not images by name: .*video.mp4"):
        assert len(folder.train_samples(tmp_path)) == 2


def test_links_into_a_store_are_images_by_their_own_names(tmp_path: Path) -> None:
    make_class(tmp_path / "plain", "nut", train=2, good=1, defects=1)
    (tmp_path / "store").mkdir()
    for index, path in enumerate(sorted((tmp_path / "plain").rglob("*.png"))):
        link = tmp_path / "linked" / path.relative_to(tmp_path / "plain")
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "store" / f"{index:x}")
        link.symlink_to(tmp_path / "store" / f"{index:x}")
    assert len(folder.train_samples(tmp_path / "linked")) == 2
    assert [bool(sample.masks) for sample in folder.test_samples(tmp_path / "linked")] == [False, True]
    (tmp_path / "store" / "5").unlink(missing_ok=True), (tmp_path / "store" / "4").unlink()
    with pytest.raises(DataError, match="link.* to nothing, pull the store of the data: .*train/good"):
        folder.train_samples(tmp_path / "linked")


def test_linked_folders_are_followed_and_do_not_go_round(tmp_path: Path) -> None:
    make_class(tmp_path / "elsewhere", "nut", train=3)
    good = tmp_path / "data" / "nut" / "train" / "good"
    save(noise(9), good / "own.png")
    (good / "today").symlink_to(tmp_path / "elsewhere" / "nut" / "train" / "good")
    (good / "again").symlink_to(good)
    assert len(folder.train_samples(tmp_path / "data")) == 4


def save_deep(path: Path, seed: int, highest: int) -> Path:
    """A grey photograph of 16 bits a pixel whose values end at `highest`."""
    values = np.random.default_rng(seed).integers(0, highest, (SIZE, SIZE))
    values[0, 0] = highest
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


def test_the_depth_is_that_of_all_images_of_a_class(tmp_path: Path) -> None:
    make_class(tmp_path, "bolt", train=2)
    for index, highest in enumerate((900, 4000, 100)):
        save_deep(tmp_path / "nut" / "train" / "good" / f"{index}.png", index, highest)
    samples = folder.train_samples(tmp_path)
    depths = reading.depths_of(samples)
    assert depths == {"nut": 12}
    known = folder.with_depths(samples, tiny_info(depths=depths).depth_of)
    images = reading.load_images([sample for sample in known if sample.class_name == "nut"], (SIZE, SIZE))
    assert [int(image.max()) for image in images] == [round(255 * highest / 4095) for highest in (900, 4000, 100)]


# Masks ----------------------------------------------------------------------------------------------------------------


def mask_of(sample: folder.Sample) -> np.ndarray:
    ((image,),) = reading.read_labelled([sample], (SIZE, SIZE), 1)
    assert image.mask is not None
    return image.mask


@pytest.mark.parametrize(
    "name", ["000_mask.png", "000.png", "000_label.png", "000_mask.bmp", "000_MASK.PNG", "000.JPG", "000/a.png"]
)
def test_masks_have_several_names(name: str, tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", good=0, defects=1)
    truth = nut / "ground_truth" / "spot"
    (truth / "000").mkdir()
    (truth / "000_mask.png").rename(truth / name)
    (sample,) = folder.test_samples(tmp_path)
    assert sample.masks == (truth / name,)
    assert mask_of(sample).sum() == 256


def test_masks_of_several_files_are_joined(tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", good=0, defects=1, masks=False)
    for index in range(3):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[10 * index, :5] = 255 - index  # LOCO gives each kind of defect its own value
        save(mask, nut / "ground_truth" / "spot" / "000" / f"{index:03d}.png")
    (sample,) = folder.test_samples(tmp_path)
    assert len(sample.masks) == 3 and mask_of(sample).sum() == 15


def test_a_mask_without_an_image_is_told_with_the_names_that_are_looked_for(tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", defects=1)
    (nut / "ground_truth/spot/000_mask.png").rename(nut / "ground_truth/spot/000_truth.png")
    with pytest.raises(
        DataError, match="1 mask without an image: .*000_truth.png: expected <name>_mask.png, <name>.png"
    ):
        folder.test_samples(tmp_path)


def test_a_class_has_one_name_however_its_accents_are_written(tmp_path: Path) -> None:
    make_class(tmp_path, "Mu\u0308tze")
    assert list(folder.find_classes(tmp_path)) == list(folder.find_classes(tmp_path, ["Mu\u0308tze"])) == ["Mütze"]


def test_masks_among_the_photographs_are_refused(tmp_path: Path) -> None:
    spots = make_class(tmp_path, "nut") / "test" / "spot"
    save(noise(1), spots / "000_mask.png")
    save(noise(2), spots / "alone_mask.png")  # of no photograph: a part may be called so
    with pytest.raises(DataError, match="1 mask among the photographs.*spot.000_mask.png: move them to"):
        folder.test_samples(tmp_path)


def test_masks_of_good_images_are_told_and_not_looked_at(tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    save(np.full((16, 16), 255, np.uint8), tmp_path / "nut" / "ground_truth" / "good" / "000_mask.png")
    with pytest.warns(UadWarning, match="1 mask of good images, not looked at: .*000_mask.png"):
        found = folder.test_samples(tmp_path)
    assert all(bool(sample.masks) == sample.is_defect for sample in found)


def test_annotations_and_missing_masks_are_told(tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder.test_samples(tmp_path)
    (tmp_path / "nut" / "test" / "spot" / "000.json").write_text("{}")
    (tmp_path / "nut" / "ground_truth" / "spot" / "000_mask.png").unlink()
    with pytest.warns(UadWarning) as told:
        folder.test_samples(tmp_path)
    first, second = (str(each.message) for each in told)
    assert first.startswith("1 annotation not read, only masks are: ") and "000.json" in first
    assert second.startswith("1 of 3 defects of nut have no mask, and count in no pixel figure: ")


def test_doubtful_masks_are_told_with_their_share(tmp_path: Path) -> None:
    nut = make_class(tmp_path, "nut", good=0, defects=3)
    truth = nut / "ground_truth" / "spot"
    save(np.zeros((SIZE, SIZE), np.uint8), truth / "000_mask.png")
    inverted = np.full((SIZE, SIZE), 255, np.uint8)
    inverted[20:36, 24:40] = 0
    save(inverted, truth / "001_mask.png")
    with pytest.warns(UadWarning) as said:
        reading.check_samples(folder.test_samples(tmp_path))
    empty, full = sorted((str(each.message) for each in said), key=lambda text: "inverted" in text)
    assert "1 mask without a defective pixel" in empty and "000_mask.png" in empty
    assert "inverted? " in full and "001_mask.png (94%)" in full


def test_what_is_held_out_of_a_class_does_not_depend_on_the_other_classes(tmp_path: Path) -> None:
    for name in ("bolt", "nut", "screw"):
        make_class(tmp_path, name, train=20)
    everything = folder.hold_out(folder.train_samples(tmp_path), 0.2, seed=3)[1]
    for name in ("nut", "screw"):
        alone = folder.hold_out(folder.train_samples(tmp_path, [name]), 0.2, seed=3)[1]
        assert alone == [sample for sample in everything if sample.class_name == name]
    places = [[int(s.path.stem) for s in everything if s.class_name == name] for name in ("nut", "screw")]
    assert places[0] != places[1]  # no class has the split of another


@pytest.mark.parametrize("part", ["train", "test", "ground_truth", "."])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_part_of_a_class_is_no_folder_of_classes(part: str, renamed: bool, tmp_path: Path) -> None:
    make_class(tmp_path / "images", "gear")
    root = tmp_path / "images" / "gear" / part
    if part == "." or renamed and part != "test":
        assert list(folder.find_classes(tmp_path / "images" / "gear")) == ["gear"]
        return
    if renamed:
        root = root.rename(tmp_path / "photographs")
    for read in (folder.find_classes, folder.train_samples):
        with pytest.raises(DataError, match="give the folder of the classes"):
            read(root)


def test_a_class_that_is_called_good_is_a_class(tmp_path: Path) -> None:
    for name in ("good", "nut"):
        make_class(tmp_path / "classes", name)
    assert list(folder.find_classes(tmp_path / "classes")) == ["good", "nut"]
    save(noise(0), tmp_path / "plain" / "good" / "a.png")
    assert list(folder.find_classes(tmp_path / "plain")) == ["good"]
