"""uad.training.classes: a class comes and goes, and what is known of the others stays to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_folders import make_class, save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.images import read_image  # noqa: E402
from export.classes import of_classes, together  # noqa: E402
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
