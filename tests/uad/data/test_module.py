"""uad.data.module: what a training step and the held-out images look like."""

import shutil
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
from image_folders import held_out_digests, make_class

from engines.errors import UadWarning

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from uad.data.batches import GoodImages  # noqa: E402
from uad.data.module import AnomalyData  # noqa: E402
from uad.data.synthetic import draw_dataset  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root: Path = tmp_path_factory.mktemp("images")
    draw_dataset(root, n_train=6, n_test_good=0, n_test_defect=0)
    found = AnomalyData(root, image_size=64, batch_size=4, held_out=0.2)
    found.setup("fit")
    found.targets = [torch.arange(len(found.images))[:, None]]
    found.draws = True
    return found


def test_a_training_batch_has_its_images_with_a_defect_on_each_and_other_ones_in_the_next_epoch(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for epoch in range(2):
        monkeypatch.setattr(data, "trainer", types.SimpleNamespace(current_epoch=epoch))
        seen = {}
        for batch in data.train_dataloader():
            for image, label, (place,), changed in zip(batch.image, batch.label, batch.targets[0], batch.drawn):
                assert (image == data.training_images[place]).all()
                assert data.training_samples[place].class_name == data.class_names[label]
                share = (image != changed).any(dim=2).float().mean()
                assert 0 < share < 0.06  # a patch is at most a fifth wide and high
                seen[int(place)] = changed
        assert len(seen) == len(data.training_samples) // 4 * 4
        drawn.append(seen)
    common = drawn[0].keys() & drawn[1].keys()
    assert len(common) > 10 and all((drawn[0][place] != drawn[1][place]).any() for place in common)


def test_held_out_images_are_as_they_are(data: Any) -> None:
    batches = list(data.val_dataloader())
    assert all(batch.drawn is None for batch in batches)
    assert torch.equal(torch.cat([batch.image for batch in batches]), data.held_out_images)


def test_the_halves_of_each_class_share_an_image_only_where_there_is_one() -> None:
    good = GoodImages(torch.arange(6)[:, None], torch.tensor([0, 1, 0, 1, 0, 2]), ["a", "b", "c"])
    first, second = good.halves()
    assert (first, second) == ([2, 3, 5], [0, 4, 1, 5])
    assert good.at(second).image.flatten().tolist() == second and good.at(first).label.tolist() == [0, 1, 2]


def test_copies_on_two_sides_are_told_with_their_number(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=12)
    good, tests = tmp_path / "nut" / "train" / "good", tmp_path / "nut" / "test"
    shutil.copy(good / "000.png", tests / "good" / "copy.png")
    shutil.copy(good / "001.png", tests / "spot" / "copy.png")
    data = AnomalyData(tmp_path, image_size=64)
    with pytest.warns(UadWarning, match="2 test images equal to good images of training"):
        data.check()
    for path in sorted(good.iterdir())[1:]:
        shutil.copy(good / "000.png", path)
    with pytest.warns(UadWarning, match="1 held-out image equal to good images of training"):
        AnomalyData(tmp_path, image_size=64).check()


def test_nothing_is_told_where_there_is_no_copy(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AnomalyData(tmp_path, image_size=64).check()


def test_the_held_out_images_are_told_by_their_content(tmp_path: Path) -> None:
    make_class(tmp_path, "nut", train=24)
    data = AnomalyData(tmp_path, image_size=64)
    data.check()
    assert data.held_out_digests() == {"nut": held_out_digests("nut", 24, 0.1, 0)}
