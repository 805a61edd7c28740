"""uad.training.classes: a class comes and goes, and what is known of the others stays to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from image_folders import make_class, noise, save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import engines  # noqa: E402
from engines.graph import constants  # noqa: E402
from engines.images import read_image  # noqa: E402
from engines.model_file import load_model  # noqa: E402
from export.classes import mixed, of_classes, together  # noqa: E402
from uad import cli  # noqa: E402
from uad.data.folder import test_samples as samples_of_tests  # noqa: E402
from uad.data.reading import load_images  # noqa: E402
from uad.training.checkpoint import load_checkpoint  # noqa: E402
from uad.training.torch_engine import TorchEngine  # noqa: E402

SIZE = (64, 96)
SMALL = ["--data.image_size", "[64,96]", "--model.backbone", "mobilenet_v2", "--model.weights", "none"]
SHADES = {"bolt": 1.0, "cog": 0.6, "nut": 0.3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, which their brightness tells."""
    root: Path = tmp_path_factory.mktemp("images")
    for name, shade in SHADES.items():
        make_class(root, name, train=9)
        for path in (root / name).glob("t*/*/*.png"):
            save((read_image(path) * shade).astype(np.uint8), path)
    return root


def uad(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module", params=["patchcore", "stfpm"])
def run(request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bolts and nuts with a bank."""
    out: Path = tmp_path_factory.mktemp(request.param) / "run"
    steps = ["--trainer.max_epochs", 1] if request.param == "stfpm" else []
    flags = ["--model.bank", 50, "--data.root", images, "--data.classes", "[bolt,nut]", *steps]
    uad("fit", "--model", request.param, *SMALL, *flags, "--out", out)
    return out


@pytest.fixture(scope="module")
def added(run: Path, images: Path) -> Path:
    out = run.with_name("added")
    uad("fit", "--add-class", "cog", "--ckpt", run / "model.ckpt", "--data.root", images, "--out", out)
    return out


def test_the_new_class_is_known_and_nothing_else_changes(run: Path, added: Path, images: Path) -> None:
    before, after = (TorchEngine(folder / "model.ckpt", batch=4) for folder in (run, added))
    assert before.info.classes == ["bolt", "nut"] and after.info.classes == ["bolt", "nut", "cog"]
    for name in ("thresholds", "limits", "held_out"):
        one, other = getattr(before.info, name), getattr(after.info, name)
        assert set(other) == {"bolt", "nut", "cog"} and {key: other[key] for key in one} == one
    assert after.info.threshold == before.info.threshold
    assert after.info.made_from == before.info.checkpoint_sha256
    tests = samples_of_tests(images)
    one, other = (engine.infer(load_images(tests, SIZE)) for engine in (before, after))
    names = np.array([sample.class_name for sample in tests])
    assert other.class_index is not None and one.class_distance is not None and other.class_distance is not None
    assert [after.info.classes[index] for index in other.class_index] == names.tolist()
    old = names != "cog"
    np.testing.assert_array_equal(one.score[old], other.score[old])
    np.testing.assert_array_equal(one.anomaly_map[old], other.anomaly_map[old])
    np.testing.assert_array_equal(one.class_distance[old], other.class_distance[old])
    assert (other.class_distance[~old] < one.class_distance[~old]).all()


@pytest.mark.parametrize("run", ["patchcore"], indirect=True)
def test_the_class_is_as_if_it_had_been_there_from_the_start(run: Path, added: Path, images: Path) -> None:
    """But for the projection of the bank, which is that of the other classes; a student would not know it."""
    whole = run.with_name("whole")
    flags = ["--model.bank", 50, "--data.root", images, "--out", whole]
    uad("fit", "--model", "patchcore", *SMALL, *flags)
    one, other = (load_checkpoint(folder / "model.ckpt").network.head for folder in (whole, added))
    of_one, of_other = 1, 2  # cog
    assert one.bank.farthest[of_one] == pytest.approx(float(other.bank.farthest[of_other]), rel=0.5)
    centroids = [
        head.readout.centroids[index] * head.readout.spread for head, index in ((one, of_one), (other, of_other))
    ]
    torch.testing.assert_close(*centroids, rtol=1e-4, atol=1e-5)
    two, three = (load_checkpoint(folder / "model.ckpt").network.state_dict() for folder in (run, whole))
    assert {name for name, value in two.items() if value.shape != three[name].shape} == set(of_classes(three))


def test_what_is_removed_is_as_if_it_had_not_come(run: Path, added: Path) -> None:
    out = run.with_name("removed")
    uad("fit", "--remove-class", "cog", "--ckpt", added / "model.ckpt", "--out", out)
    one, other = (load_checkpoint(folder / "model.ckpt") for folder in (run, out))
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name
    for name in ("classes", "thresholds", "limits", "held_out", "depths", "threshold"):
        assert getattr(one.info, name) == getattr(other.info, name)
    assert other.info.made_from == one.info.checkpoint_sha256  # through the one that was added
    assert json.loads((out / "metrics.json").read_text())["classes"] == {}


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More bolts, a little darker, some of which are put by to be tested."""
    root: Path = tmp_path_factory.mktemp("more")
    for index in range(12):
        image = (noise(7000 + index) * 0.85).astype(np.uint8)
        save(image, root / "bolt" / ("train" if index < 9 else "test") / "good" / f"{index}.png")
    return root


def test_more_images_of_a_class_make_them_known(run: Path, more: Path, images: Path) -> None:
    out = run.with_name("more")
    uad("fit", "--add-images", "bolt", "--ckpt", run / "model.ckpt", "--data.root", more, "--out", out)
    before, after = (TorchEngine(folder / "model.ckpt", batch=4) for folder in (run, out))
    assert after.info.classes == before.info.classes and after.info.images == {"bolt": 16, "nut": 8}
    assert len(after.info.held_out["bolt"]) == 2 and after.info.held_out["nut"] == before.info.held_out["nut"]
    assert after.info.thresholds["nut"] == before.info.thresholds["nut"]
    assert after.info.thresholds["bolt"] >= before.info.thresholds["bolt"]
    tests = samples_of_tests(images)
    nuts = load_images([each for each in tests if each.class_name == "nut"], SIZE)
    np.testing.assert_array_equal(before.infer(nuts).score, after.infer(nuts).score)
    new = load_images(samples_of_tests(more), SIZE)
    one, other = (engine.infer(new).class_distance for engine in (before, after))
    assert other.mean() < 0.9 * one.mean()  # type: ignore[union-attr]
    old, grown = (engine.network.head.bank for engine in (before, after))
    kept = (torch.cdist(grown.patches[0].T, old.patches[0].T).min(dim=1).values < 1e-4).sum()
    assert 5 < int(kept) < 45 and torch.equal(grown.patches[1], old.patches[1])  # of 50, some of each


def test_images_that_are_known_are_no_new_ones(
    run: Path, images: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    given = ["--ckpt", run / "model.ckpt", "--data.root", images, "--out", tmp_path / "out"]
    assert "are known to" in error_of("fit", "--add-images", "bolt", *given)
    assert "knows bolt, nut" in error_of("fit", "--add-images", "cog", *given)


def test_statistics_are_mixed_as_those_of_all_images() -> None:
    random = np.random.default_rng(0)
    few, many = random.normal(3.0, 1.0, (20, 4)), random.normal(5.0, 2.0, (60, 4))
    level, spread = "head.readout.levels.0", np.full(4, 2.0, np.float32)

    def head(values: np.ndarray, unit: np.ndarray) -> dict[str, np.ndarray]:
        made = {f"{level}.mean": values.mean(axis=0), f"{level}.std": values.std(axis=0)}
        made["head.readout.centroids"] = values.mean(axis=0) / unit
        made["head.readout.trust"] = made["head.bank.farthest"] = values.max(keepdims=True)[0, 0]
        return {
            **{name: np.asarray(value, np.float32)[None] for name, value in made.items()},
            "head.readout.spread": unit,
        }

    found = mixed(head(few, spread), 0, head(many, spread / 4), 0.75)
    everything = np.concatenate([few, many])
    np.testing.assert_allclose(found[f"{level}.mean"][0], everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[f"{level}.std"][0], everything.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["head.readout.centroids"][0], everything.mean(axis=0) / 2, rtol=1e-5)
    assert found["head.bank.farthest"][0] == np.float32(everything.max())
    assert found["head.readout.trust"][0] == np.float32(few.max())


def test_a_run_says_what_it_is_of(added: Path, error_of: Callable[..., str]) -> None:
    record = json.loads((added / "run.json").read_text())
    assert record["finished"] and record["settings"]["add_class"] == "cog"
    assert len(record["images"]) == 9 and {each[0] for each in record["images"].values()} == {"cog"}
    assert set(json.loads((added / "metrics.json").read_text())["classes"]) == {"cog"}
    assert "there is nothing to go on with" in error_of("fit", "--resume", added)


def test_classes_of_unequal_banks_stand_beside_each_other() -> None:
    random = np.random.default_rng(0)

    def head(classes: int, size: int, spread: float) -> dict[str, np.ndarray]:
        shapes = {"patches": (classes, 3, size), "squares": (classes, 1, size), "farthest": (classes,)}
        made = {f"head.bank.{name}": random.random(shape).astype(np.float32) for name, shape in shapes.items()}
        made["head.readout.centroids"] = random.random((classes, 4)).astype(np.float32)
        made["head.readout.spread"] = np.full(4, spread, np.float32)
        return made

    one, other = head(2, 5, 1.0), head(1, 3, 2.0)
    joined = together(one, other)
    assert list(joined) == of_classes(one) and "head.readout.spread" not in joined
    np.testing.assert_array_equal(joined["head.bank.patches"][:2], one["head.bank.patches"])
    np.testing.assert_array_equal(joined["head.bank.patches"][2], other["head.bank.patches"][0][:, [0, 1, 2, 0, 1]])
    np.testing.assert_allclose(joined["head.readout.centroids"][2], 2 * other["head.readout.centroids"][0])
    larger = together(other, one)
    np.testing.assert_array_equal(larger["head.bank.squares"][0, 0], other["head.bank.squares"][0, 0][[0, 1, 2, 0, 1]])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--add-class", "nut", "--data.root", "IMAGES"], "knows it already"),
        (["--add-class", "gear", "--data.root", "IMAGES"], "gear"),
        (["--add-class", "cog"], "--add-class needs --data.root"),
        (["--add-class", "cog", "--data.root", "IMAGES", "--data.image_size", "64"], "--data.image_size: leave it out"),
        (["--add-class", "cog", "--data.root", "IMAGES", "--data.rot", "1"], "--data.rot is no setting"),
        (["--add-class", "cog", "--data.root", "IMAGES", "--trainer.max_epochs", "1"], "leave out trainer"),
        (["--add-class", "cog", "--data.root", "IMAGES", "--model.lr", "1"], "leave out model"),
        (["--add-class", "cog", "--remove-class", "nut"], "--add-class and --remove-class: give one of them"),
        (["--remove-class", "cog"], "knows bolt, nut"),
        (["--remove-class", "nut", "--data.root", "IMAGES"], "leave out data"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(
    flags: list[str], said: str, run: Path, images: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    given = [str(images) if flag == "IMAGES" else flag for flag in flags]
    assert said in error_of("fit", "--ckpt", run / "model.ckpt", "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out" / "model.ckpt").exists()


def test_where_it_cannot_go_is_said(
    run: Path, added: Path, images: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    add = ["fit", "--add-class", "cog", "--data.root", images]
    assert "needs --ckpt" in error_of(*add, "--out", tmp_path / "out")
    assert "is the run of" in error_of(*add, "--ckpt", run / "model.ckpt", "--out", run)
    assert "holds a run" in error_of(*add, "--ckpt", run / "model.ckpt", "--out", added)


@pytest.mark.filterwarnings("always::engines.errors.UadWarning")
def test_equal_images_in_two_folders_are_told(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bolt", "twin"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "train").symlink_to(images / "bolt" / "train")
    flags = ["--model.bank", 50, "--data.root", tmp_path / "in", "--out", tmp_path / "run"]
    uad("fit", "--model", "patchcore", *SMALL, *flags)
    assert "held-out good images are seen as another class: 1 of 1 twin as bolt" in capsys.readouterr().err


def test_a_model_without_a_bank_needs_a_training(images: Path, tmp_path: Path, error_of: Callable[..., str]) -> None:
    flags = ["--data.root", images, "--data.classes", "[bolt,nut]", "--trainer.max_epochs", 1]
    uad("fit", "--model", "stfpm", *SMALL, *flags, "--out", tmp_path / "run")
    ckpt = ["--ckpt", tmp_path / "run" / "model.ckpt", "--out", tmp_path / "out"]
    assert "has no bank, so a class needs a training" in error_of(
        "fit", "--add-class", "cog", "--data.root", images, *ckpt
    )
    uad("fit", "--remove-class", "nut", *ckpt)
    checkpoint = load_checkpoint(tmp_path / "out" / "model.ckpt")
    assert checkpoint.info.classes == ["bolt"] and len(checkpoint.network.head.readout.centroids) == 1
    ckpt[1] = tmp_path / "out" / "model.ckpt"
    assert "knows no other" in error_of("fit", "--remove-class", "bolt", *ckpt[:2], "--out", tmp_path / "none")


# Its INT8 file -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The INT8 file of the model of bolts and nuts."""
    out: Path = run.with_name("int8.onnx")
    some = tmp_path_factory.mktemp("two")
    for name in ("bolt", "nut"):
        (some / name).symlink_to(images / name)
    uad(
        "export", run / "model.ckpt", "--precision", "int8", "--calibration-data", some, "--target", "cpu", "--out", out
    )
    return out


@pytest.fixture(scope="module")
def cogs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the new class alone."""
    folder: Path = tmp_path_factory.mktemp("cogs")
    (folder / "cog").symlink_to(images / "cog")
    return folder


def test_its_int8_file_needs_no_old_image_and_judges_the_others_as_before(
    run: Path, added: Path, int8: Path, cogs: Path, images: Path, tmp_path: Path
) -> None:
    flags = ["--precision", "int8", "--like", int8, "--target", "cpu"]
    for source in (added / "model.ckpt", tmp_path / "fp32.onnx"):
        out = tmp_path / f"{source.stem}.int8.onnx"
        uad("export", source, *flags, "--calibration-data", cogs, "--out", out)
        if source.suffix == ".ckpt":
            uad("export", source, "--precision", "fp32", "--target", "cpu", "--out", tmp_path / "fp32.onnx")
    tests = samples_of_tests(images)
    pixels, names = load_images(tests, SIZE), np.array([sample.class_name for sample in tests])
    before, after, again, floats = (
        engines.load(path, "onnxruntime", batch=4)
        for path in (int8, tmp_path / "model.int8.onnx", tmp_path / "fp32.int8.onnx", tmp_path / "fp32.onnx")
    )
    one, other, third, exact = (engine.infer(pixels) for engine in (before, after, again, floats))
    old = names != "cog"
    np.testing.assert_array_equal(one.score[old], other.score[old])
    np.testing.assert_array_equal(one.class_distance[old], other.class_distance[old])  # type: ignore[index]
    np.testing.assert_array_equal(third.score, other.score)
    np.testing.assert_array_equal(other.class_index, exact.class_index)
    assert (other.score != exact.score).any()
    info = after.info
    assert info.precision == "int8" and info.classes == ["bolt", "nut", "cog"]
    assert info.refitted == {"images": {"cog": 8}, "thresholds": ["cog"]}
    for name in ("thresholds", "limits"):
        assert {key: getattr(info, name)[key] for key in ("bolt", "nut")} == getattr(before.info, name)
    assert info.thresholds["cog"] != floats.info.thresholds["cog"] and info.calibration == before.info.calibration


def test_a_class_that_went_needs_no_image(run: Path, added: Path, int8: Path, images: Path, tmp_path: Path) -> None:
    uad("fit", "--remove-class", "nut", "--ckpt", run / "model.ckpt", "--out", tmp_path / "bolts")
    out = tmp_path / "bolts.onnx"
    uad("export", tmp_path / "bolts" / "model.ckpt", "--like", int8, "--target", "cpu", "--out", out)
    with engines.load(out, "onnxruntime") as after, engines.load(int8, "onnxruntime") as before:
        pixels = load_images([each for each in samples_of_tests(images) if each.class_name == "bolt"], SIZE)
        np.testing.assert_array_equal(before.infer(pixels).score, after.infer(pixels).score)
        assert after.info.classes == ["bolt"]


@pytest.mark.filterwarnings("always::engines.errors.UadWarning")
def test_ranges_that_the_new_class_leaves_are_told_and_widened(
    run: Path, int8: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("train/good", "test/good"):
        for index in range(9):  # of squares in eight colours, where the others are grey
            squares = np.random.default_rng(index).integers(0, 2, (8, 12, 3)).astype(np.uint8) * 255
            save(squares.repeat(8, axis=0).repeat(8, axis=1), tmp_path / "in" / "gear" / kind / f"{index}.png")
    uad(
        "fit",
        "--add-class",
        "gear",
        "--ckpt",
        run / "model.ckpt",
        "--data.root",
        tmp_path / "in",
        "--out",
        tmp_path / "out",
    )
    export = ["export", tmp_path / "out" / "model.ckpt", "--like", int8, "--calibration-data", tmp_path / "in"]
    capsys.readouterr()
    uad(*export, "--target", "cpu", "--out", tmp_path / "narrow.onnx")
    said = capsys.readouterr().err
    assert "INT8 ranges are left by gear" in said and "--widen widens them" in said
    uad(*export, "--widen", "--target", "cpu", "--out", tmp_path / "wide.onnx")
    assert "they are widened" in capsys.readouterr().out
    narrow, wide, floats = (
        scales_of(load_model(path)) for path in (tmp_path / "narrow.onnx", tmp_path / "wide.onnx", int8)
    )
    assert narrow == floats and all(wide[name] >= scale for name, scale in floats.items()) and wide != floats


def scales_of(model: onnx.ModelProto) -> dict[str, float]:
    values = constants(model)
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in values]
    return {node.input[0]: float(values[node.input[1]]) for node in nodes}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--like needs --calibration-data: a folder with good images of cog"),
        (["--calibration-data", "BOLTS"], "holds no good images of cog, which came"),
        (["--calibration-data", "COGS", "--calibrator", "entropy"], "--calibrator is not for --like"),
        (["--calibration-data", "COGS", "--precision", "fp16"], "--like is for --precision int8, not fp16"),
    ],
)
def test_what_cannot_be_like_it_is_said(
    flags: list[str],
    said: str,
    added: Path,
    int8: Path,
    cogs: Path,
    images: Path,
    tmp_path: Path,
    error_of: Callable[..., str],
) -> None:
    (tmp_path / "bolts").mkdir()
    (tmp_path / "bolts" / "bolt").symlink_to(images / "bolt")
    given = [{"COGS": str(cogs), "BOLTS": str(tmp_path / "bolts")}.get(flag, flag) for flag in flags]
    assert said in error_of("export", added / "model.ckpt", "--like", int8, *given, "--out", tmp_path / "a.onnx")


def test_a_file_of_another_model_is_not_like_it(
    run: Path, added: Path, int8: Path, cogs: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    out = ["--calibration-data", cogs, "--out", tmp_path / "a.onnx"]
    assert "is not of the model" in error_of("export", run / "model.ckpt", "--like", int8, *out)
    uad("export", run / "model.ckpt", "--precision", "fp32", "--target", "cpu", "--out", tmp_path / "fp32.onnx")
    assert "is fp32: give an int8 file" in error_of(
        "export", added / "model.ckpt", "--like", tmp_path / "fp32.onnx", *out
    )
    assert "--widen is for --like" in error_of("export", added / "model.ckpt", "--widen", "--precision", "int8", *out)
