"""`uad threshold`: the thresholds change, nothing else does, and they can be put back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from disks import files_of_at_most
from graphs import build_tiny, dark_and_bright, save_tiny, tiny_info, with_readout
from image_folders import bolts_and_nuts, save

from engines.errors import UadWarning, UserError
from engines.metadata import OUTPUTS
from engines.model_file import read_info
from uad import cli
from uad.commands.choices import DataOptions
from uad.commands.threshold import ThresholdOptions, threshold


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bolts_and_nuts(tmp_path_factory.mktemp("images"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "a.onnx", with_readout())


def test_the_thresholds_are_chosen_and_the_graph_stays(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, info = onnx.load(model), read_info(model)
    flags = ["--data.root", str(root), "--target-fpr", "0.25", "--runtime", "onnxruntime"]
    assert cli.main(["threshold", str(model), *flags]) == 0
    said = capsys.readouterr().out
    assert said.count("1 of 4") == 2 and "2 of 8" in said
    assert "8 good images cannot promise 25%: with 95% confidence the rate is at most 65.1%" in said
    after, changed = onnx.load(model), read_info(model)
    assert after.graph == before.graph
    assert changed.thresholds != info.thresholds and set(changed.thresholds) == set(info.thresholds)
    assert changed.former_thresholds == {**info.thresholds, "": info.threshold}


def test_the_first_thresholds_can_be_put_back(model: Path, root: Path) -> None:
    info = read_info(model)
    for rate in (0.0, 0.5):
        threshold(ThresholdOptions(model, DataOptions(root), target_fpr=rate))
    assert read_info(model) != info
    threshold(ThresholdOptions(model, DataOptions(root), restore=True))
    assert read_info(model) == info
    with pytest.raises(UserError, match="its thresholds were not changed"):
        threshold(ThresholdOptions(model, DataOptions(root), restore=True))


def test_a_class_without_images_keeps_its_threshold_and_that_is_said(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = read_info(model)
    flags = ["--data.root", str(root), "--data.classes", "nut", "--target-recall", "1"]
    assert cli.main(["threshold", str(model), *flags]) == 0
    changed = read_info(model)
    assert changed.thresholds["nut"] != info.thresholds["nut"]
    assert (changed.thresholds["bolt"], changed.threshold) == (info.thresholds["bolt"], info.threshold)
    assert "no images of bolt: thresholds of these and of unknown classes stay" in capsys.readouterr().out


def test_a_class_that_the_model_does_not_know_is_told_and_sets_no_threshold(
    model: Path, root: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(root, mixed)
    threshold(ThresholdOptions(model, DataOptions(mixed), target_recall=1.0, common=True))
    before = read_info(model)
    (mixed / "gear").mkdir()
    shutil.copytree(mixed / "nut" / "test", mixed / "gear" / "test")
    for path in (mixed / "gear" / "test").glob("*/*.png"):
        save(np.zeros((16, 16, 3), np.uint8), path)
    with pytest.warns(UadWarning, match="does not know gear"):
        rows = threshold(ThresholdOptions(model, DataOptions(mixed), target_recall=1.0, common=True))
    assert read_info(model) == before and "gear" not in {row.class_name for row in rows}
    with pytest.raises(UserError, match="mixed holds no class that .* knows: bolt, nut"):
        threshold(ThresholdOptions(model, DataOptions(mixed, classes=["gear"]), target_recall=1.0))


def test_one_threshold_for_all_wants_images_of_all(model: Path, root: Path) -> None:
    with pytest.raises(UserError, match="--common sets the threshold of bolt too, of which there is no image"):
        threshold(ThresholdOptions(model, DataOptions(root, classes=["nut"]), target_recall=1.0, common=True))
    threshold(ThresholdOptions(model, DataOptions(root), target_recall=1.0, common=True))
    changed = read_info(model)
    assert set(changed.thresholds.values()) == {changed.threshold}


def test_the_table_is_printed_though_the_file_cannot_be_written(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data.root", str(root), "--target-fpr", "0", "--runtime", "onnxruntime"]
    before = model.read_bytes()
    with files_of_at_most(10):
        assert cli.main(["threshold", str(model), *flags]) == 2
    printed = capsys.readouterr()
    assert "| nut" in printed.out and "cannot write" in printed.err.splitlines()[-1]
    assert model.read_bytes() == before


def test_a_plan_keeps_its_bytes(fake_gpu: object, root: Path, tmp_path: Path) -> None:
    from engines.plan_file import read_description, read_plan

    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    fake_gpu("8.5.2")  # type: ignore[operator]
    plan = build_tiny(tmp_path / "a.plan", with_readout(), tiny_info(outputs=list(OUTPUTS)))
    content, built = plan.read_bytes(), read_description(plan)[1]
    threshold(ThresholdOptions(plan, DataOptions(root), target_fpr=0.0))
    assert plan.read_bytes() == content and read_plan(plan)[2] == built
    assert read_description(plan)[0].former_thresholds is not None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "give --target-fpr, --target-recall or --limit, one of them"),
        (
            ["--target-fpr", "0.1", "--target-recall", "0.9"],
            "give --target-fpr, --target-recall or --limit, one of them",
        ),
        (["--target-fpr", "0.1", "--limit", "2"], "give --target-fpr, --target-recall or --limit, one of them"),
        (["--limit", "0"], "--limit 0.0"),
        (["--target-fpr", "5"], "--target-fpr 5.0: give a part of the images, from 0 to 1"),
    ],
)
def test_mistakes(flags: list[str], told: str, model: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["threshold", str(model), "--data.root", str(root), *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_checkpoint_is_exported_first(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["threshold", str(tmp_path / "m.ckpt"), "--data.root", str(root), "--target-fpr", "0"]) == 2
    assert "export it first" in capsys.readouterr().err


def test_a_limit_is_set_for_every_class_and_put_back(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "a.onnx", dark_and_bright()[0], limits={"bolt": 1.05, "nut": 1.2})
    before, info = onnx.load(model), read_info(model)
    flags = ["threshold", str(model), "--data.root", str(root)]
    assert cli.main([*flags, "--limit", "1e-3", "--runtime", "onnxruntime"]) == 0
    said = capsys.readouterr().out
    assert "seen as" in said and "8 of 8" in said and "limits are set; --restore" in said
    changed = read_info(model)
    assert changed.limits == {"bolt": 1e-3, "nut": 1e-3} and changed.thresholds == info.thresholds
    assert onnx.load(model).graph == before.graph
    assert cli.main([*flags, "--limit", "3"]) == 0 and "0 of 8" in capsys.readouterr().out
    assert cli.main([*flags, "--target-fpr", "0.5"]) == 0
    assert cli.main([*flags, "--restore"]) == 0
    assert read_info(model) == info


def test_a_model_that_tells_no_class_distance_has_no_limit(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["threshold", str(save_tiny(tmp_path / "a.onnx")), "--data.root", str(root), "--limit", "2"]) == 2
    assert "a.onnx tells no class distance: train it with a bank" in capsys.readouterr().err
