"""`uad threshold`: the thresholds change, nothing else does, and they can be put back."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from graphs import build_tiny, save_tiny, tiny_info, with_readout
from image_folders import bolts_and_nuts

from engines.errors import UserError
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
    flags = ["--data.root", str(root), "--target-fpr", "0.25", "--per-class", "--runtime", "onnxruntime"]
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


def test_one_threshold_serves_classes_that_are_not_in_the_folder_too(model: Path, root: Path) -> None:
    info = read_info(model)
    chosen = DataOptions(root, classes=["nut"])
    threshold(ThresholdOptions(model, chosen, target_recall=1.0, per_class=True))
    changed = read_info(model)
    assert changed.thresholds["bolt"] == info.thresholds["bolt"] and changed.thresholds["nut"] == changed.threshold
    threshold(ThresholdOptions(model, chosen, target_recall=1.0))
    assert set(read_info(model).thresholds.values()) == {changed.threshold}


def test_a_plan_keeps_its_bytes(fake_gpu: object, root: Path, tmp_path: Path) -> None:
    from engines.plan_file import read_description, read_plan

    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    fake_gpu("8.5.2")  # type: ignore[operator]
    plan = build_tiny(tmp_path / "a.plan", with_readout(), tiny_info())
    content, built = plan.read_bytes(), read_description(plan)[1]
    threshold(ThresholdOptions(plan, DataOptions(root), target_fpr=0.0))
    assert plan.read_bytes() == content and read_plan(plan)[2] == built
    assert read_description(plan)[0].former_thresholds is not None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "give --target-fpr or --target-recall, one of them"),
        (["--target-fpr", "0.1", "--target-recall", "0.9"], "give --target-fpr or --target-recall, one of them"),
        (["--target-fpr", "5"], "--target-fpr 5.0: give a part of the images, from 0 to 1"),
    ],
)
def test_mistakes(flags: list[str], told: str, model: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["threshold", str(model), "--data.root", str(root), *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_checkpoint_is_exported_first(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["threshold", str(tmp_path / "m.ckpt"), "--data.root", str(root), "--target-fpr", "0"]) == 2
    assert "export it first" in capsys.readouterr().err
