"""What a run leaves is not lost to the next one, and a run that goes on is the same run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import files_of_at_most
from image_folders import make_class

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from small_fit import FIT  # noqa: E402

from engines.errors import OutputError  # noqa: E402
from engines.files import only_writer  # noqa: E402
from uad import cli  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training import run as run_folder  # noqa: E402
from uad.training.checkpoint import write_tensors  # noqa: E402


def fit_arguments(root: Path, out: Path, *flags: str) -> list[str]:
    return ["fit", "--data.root", str(root), "--out", str(out), *FIT, *flags]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(out: Path, name: str = "model.ckpt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / name, weights_only=True)["state_dict"]
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_takes_one_training_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with only_writer(out):
        assert cli.main(fit_arguments(tmp_path, out)) == 2
    assert f"process {os.getpid()} of " in capsys.readouterr().err
    assert cli.main(fit_arguments(tmp_path / "no", tmp_path / "new")) == 2 and not (tmp_path / "new").exists()


def stopped_after(epochs: int, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Train, and fail in the epoch after so many."""
    whole = STFPM.training_step

    def step(self: Any, batch: Any, index: int) -> Any:
        if self.current_epoch == epochs:
            raise MemoryError
        return whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(STFPM, "training_step", step)
        with pytest.raises(MemoryError):
            cli.main(arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    make_class(folder / "images", "nut")
    assert cli.main(fit_arguments(folder / "images", folder / "run", "--trainer.max_epochs", "1")) == 0
    return folder / "images", folder / "run"


@pytest.fixture
def own(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The images, and a copy of the run that may be changed."""
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"


def test_a_run_is_not_replaced_unasked(own: tuple[Path, Path], error_of: Callable[..., str]) -> None:
    root, out = own
    before = content(out)
    message = error_of(*fit_arguments(root, out))
    assert "holds a run" in message and "--overwrite" in message and f"--resume {out}" in message
    assert content(out) == before


def test_a_run_stays_when_the_one_that_should_replace_it_fails(
    own: tuple[Path, Path], error_of: Callable[..., str]
) -> None:
    root, out = own
    before = content(out)
    assert "not a number" in error_of(*fit_arguments(root, out, "--overwrite", "--model.lr", "1e30"))
    assert {name: data for name, data in content(out).items() if not name.startswith("new")} == before


def test_a_run_is_replaced_when_the_new_one_is_finished(own: tuple[Path, Path]) -> None:
    root, out = own
    before = content(out)
    (out / "int8.onnx").write_bytes(b"exported from it")
    again = ["--overwrite", "--trainer.max_epochs", "2"]
    assert cli.main(fit_arguments(root, out, *again)) == 0
    after = content(out)
    assert sorted(after) == sorted([*before, "int8.onnx"])
    assert all(after[name] != before[name] for name in before if name != "metrics.json")
    assert after["int8.onnx"] == b"exported from it"


def test_a_run_that_replaces_one_goes_on_after_a_stop(own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = own
    before = content(out)
    stopped_after(1, monkeypatch, fit_arguments(root, out, "--overwrite", "--trainer.max_epochs", "2"))
    assert all(content(out)[name] == data for name, data in before.items())
    assert cli.main(["fit", "--resume", str(out)]) == 0
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 1
    assert sorted(content(out)) == sorted(before)


def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the images, the defects that are drawn and what a step draws are those of the epoch."""
    images = tmp_path / "images"
    for name in ("nut", "bolt"):
        make_class(images, name, train=8)
    plain = STFPM.training_step
    monkeypatch.setattr(STFPM, "training_step", lambda self, *given: plain(self, *given) * (0.5 + torch.rand(())))
    arguments = ["--trainer.max_epochs", "4", "--data.batch_size", "4"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cli.main(fit_arguments(images, whole, *arguments)) == 0
    stopped_after(2, monkeypatch, fit_arguments(images, resumed, *arguments))
    assert cli.main(["fit", "--resume", str(resumed)]) == 0
    one, other = (torch.load(out / "last.ckpt", weights_only=True)["state_dict"] for out in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "train.csv").read_text().count("\n") == 5


@pytest.mark.parametrize("moves", range(6))
def test_a_replacement_that_is_cut_short_is_ended_by_resuming(
    moves: int, own: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new = own[1], own[1] / "new"
    new.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(out / name, new)
    made = ["model.ckpt", "metrics.json", "train.csv", "last.ckpt"]  # and no best.ckpt
    for name in made:
        (new / name).write_text(f"new {name}")
    count = 0

    def replace_some(source: str, target: str, whole: Callable[..., None] = os.replace) -> None:
        nonlocal count
        if not source.endswith(".part"):
            if count == moves:
                raise KeyboardInterrupt
            count += 1
        whole(source, target)

    record = run_folder.Record.read(new)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_some)
        if moves < len(made):
            with pytest.raises(KeyboardInterrupt):
                run_folder.deliver(new, out, record)
            assert (out / "model.ckpt").exists()
        else:
            run_folder.deliver(new, out, record)
    assert cli.main(["fit", "--resume", str(out)]) == 0
    assert {name: (out / name).read_text() for name in made} == {name: f"new {name}" for name in made}
    assert sorted(content(out)) == sorted([*made, "config.yaml", "run.json"])


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_with_other_things_is_left_alone(
    flags: list[str], finished: tuple[Path, Path], tmp_path: Path, error_of: Callable[..., str]
) -> None:
    (tmp_path / "train.csv").write_text("mine")
    assert "other things (train.csv)" in error_of(*fit_arguments(finished[0], tmp_path, *flags))
    assert content(tmp_path) == {"train.csv": b"mine"}


def test_a_start_that_came_to_nothing_is_no_run(own: tuple[Path, Path]) -> None:
    root, out = own
    for name in ("last.ckpt", "best.ckpt", "model.ckpt", "metrics.json"):
        (out / name).unlink()
    assert run_folder.place_for(out, overwrite=False) == out
    (out / "notes.txt").touch()
    with pytest.raises(Exception, match="other things .notes.txt"):
        run_folder.place_for(out, overwrite=False)


def test_a_finished_run_says_so_and_writes_nothing(own: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in own[1].rglob("*")}
    assert cli.main(["fit", f"--resume={own[1]}"]) == 0
    assert "is finished (max_epochs 1)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in own[1].rglob("*")} == times


def test_more_epochs_may_be_asked_for(own: tuple[Path, Path], error_of: Callable[..., str]) -> None:
    root, out = own
    before = tensors(out)
    assert cli.main(["fit", "--resume", str(out), "--trainer.max_epochs", "3"]) == 0
    last = torch.load(out / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2 and last["lr_schedulers"][0]["total_steps"] == last["global_step"]
    assert not same(before, tensors(out))
    assert "max_epochs: 3" in (out / "config.yaml").read_text()
    assert "give more" in error_of("fit", "--resume", out, "--trainer.max_epochs", "2")
    assert "own settings: leave out trainer.accelerator" in error_of("fit", "--resume", out, "--trainer.accelerator", 1)


def test_a_bar_is_taken_away_when_training_is_broken_off(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    stopped_after(1, monkeypatch, fit_arguments(finished[0], tmp_path / "run", "--trainer.max_epochs", "2"))
    assert "Epoch 1/1" not in capsys.readouterr().out
    assert cli.main(["fit", "--resume", str(tmp_path / "run")]) == 0
    assert "Epoch 1/1" in capsys.readouterr().out


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Images, and a run of three epochs that was stopped after the second."""
    for name in ("bolt", "nut"):
        make_class(tmp_path / "images", name)
    out = tmp_path / "run"
    stopped_after(2, monkeypatch, fit_arguments(tmp_path / "images", out, "--trainer.max_epochs", "3"))
    return tmp_path / "images", out


def test_a_moved_run_goes_on_as_if_it_had_not_been(
    stopped: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = stopped
    shutil.copytree(out, tmp_path / "elsewhere" / "moved")
    root.rename(tmp_path / "moved images")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["fit", "--resume", "moved", "--data.root", "../moved images"]) == 0
    (tmp_path / "moved images").rename(root)
    assert cli.main(["fit", "--resume", str(out)]) == 0
    assert same(tensors(out), tensors(tmp_path / "elsewhere" / "moved"))


def test_the_best_epoch_is_remembered_where_a_run_has_moved(
    stopped: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = stopped
    best = torch.load(out / "best.ckpt", weights_only=True)["epoch"]

    def worse(self: Any, batch: Any, index: int) -> None:
        self.log("val_loss", 1e9, batch_size=1)

    monkeypatch.setattr(STFPM, "validation_step", worse)
    out.rename(tmp_path / "moved")
    assert cli.main(["fit", "--resume", str(tmp_path / "moved")]) == 0
    assert torch.load(tmp_path / "moved" / "best.ckpt", weights_only=True)["epoch"] == best


def test_paths_of_a_run_lead_to_the_same_from_anywhere(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0], tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    stopped_after(1, monkeypatch, fit_arguments(Path("images"), Path("run"), "--trainer.max_epochs", "2"))
    monkeypatch.chdir("/")
    assert cli.main(["fit", "--resume", str(tmp_path / "run")]) == 0


def _add_a_class(root: Path) -> None:
    make_class(root, "washer")


def _remove_a_class(root: Path) -> None:
    shutil.rmtree(root / "bolt")


def _remove_an_image(root: Path) -> None:
    next((root / "nut" / "train" / "good").iterdir()).unlink()


def _change_an_image(root: Path) -> None:
    one, other, *_ = sorted((root / "nut" / "train" / "good").iterdir())
    shutil.copy(one, other)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_add_a_class, "added (washer/"),
        (_remove_a_class, "gone (bolt/"),
        (_remove_an_image, "1 image gone (nut/"),
        (_change_an_image, "1 image changed (nut/"),
    ],
)
def test_a_run_goes_on_with_its_own_images_only(
    change: Callable[[Path], None], told: str, stopped: tuple[Path, Path], error_of: Callable[..., str]
) -> None:
    root, out = stopped
    before = content(out)
    change(root)
    message = error_of("fit", "--resume", out)
    assert "began with other images" in message and told in message
    assert content(out) == before


def test_a_run_goes_on_with_its_own_settings_only(own: tuple[Path, Path], error_of: Callable[..., str]) -> None:
    config = own[1] / "config.yaml"
    config.write_text(config.read_text().replace("held_out: 0.1", "held_out: 0.2"))
    assert "config.yaml was changed (data.held_out)" in error_of("fit", "--resume", own[1])
    (own[1] / "run.json").write_text("[]")
    assert "are not those of a run" in error_of("fit", "--resume", own[1])
    (own[1] / "run.json").unlink()
    assert "has no run.json" in error_of("fit", "--resume", own[1])


def test_the_settings_of_a_run_are_settings_for_another(own: tuple[Path, Path], tmp_path: Path) -> None:
    config = own[1] / "config.yaml"
    assert cli.main(["fit", "--config", str(config), "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "config.yaml").read_text() == config.read_text()
    assert same(tensors(own[1]), tensors(tmp_path / "other"))


def test_the_record_names_every_good_image(own: tuple[Path, Path]) -> None:
    root, out = own
    images = json.loads((out / "run.json").read_text())["images"]
    files = {path.relative_to(root).as_posix(): path for path in (root / "nut" / "train").rglob("*.png")}
    assert images.keys() == files.keys()
    assert {part for _, part, _, _ in images.values()} == {"training", "held out"}
    assert all(images[name][2] == path.stat().st_size for name, path in files.items())


def test_a_class_that_appears_while_it_trains_is_none_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_class(tmp_path / "images", "nut")
    whole = STFPM.fit_readout

    def late(self: Any, *arguments: Any) -> None:
        make_class(tmp_path / "images", "bolt")
        whole(self, *arguments)

    monkeypatch.setattr(STFPM, "fit_readout", late)
    assert cli.main(fit_arguments(tmp_path / "images", tmp_path / "run", "--trainer.max_epochs", "1")) == 0
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())["classes"]) == ["nut"]


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_former(tmp_path: Path) -> None:
    write_tensors(tmp_path / "last.ckpt", {"epoch": 0})
    with files_of_at_most(10_000), pytest.raises(OutputError, match="cannot write .*last.ckpt"):
        write_tensors(tmp_path / "last.ckpt", {"weights": torch.zeros(100_000)})
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"epoch": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "setting",
    [
        "precision=bf16-true",
        "precision=16-true",
        "precision=64-true",
        "precision=64",
        "limit_val_batches=0",
        "limit_train_batches=0",
        "fast_dev_run=true",
        "check_val_every_n_epoch=2",
        "enable_checkpointing=true",
        "barebones=true",
        "max_epochs=0",
        "devices=2",
        "strategy=ddp_spawn",
        "logger={class_path: os.system}",
        "logger=os.system",
        "callbacks=[{class_path: os.system}]",
        "plugins=os.system",
        "profiler=os.system",
        "profiler=advance",
        "accelerator=os.system",
    ],
)
def test_trainer_settings_that_cannot_serve_are_one_line_at_the_start(
    setting: str, finished: tuple[Path, Path], tmp_path: Path, error_of: Callable[..., str]
) -> None:
    name, _, value = setting.partition("=")
    flags = [] if name == "max_epochs" else ["--trainer.max_epochs", "1"]
    message = error_of(*fit_arguments(finished[0], tmp_path / "run", *flags, f"--trainer.{setting}"))
    assert message.startswith(f"uad: error: --trainer.{name} "), message
    assert not (tmp_path / "run").exists()


def test_what_lightning_writes_lies_in_the_run(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    flags = ["--trainer.logger", "true", "--trainer.profiler", "simple", "--trainer.max_epochs", "1"]
    assert cli.main(fit_arguments(finished[0], tmp_path / "run", *flags)) == 0
    assert not list((tmp_path / "cwd").iterdir())
    assert "Total time" in next((tmp_path / "run").glob("*profile.txt")).read_text()
    assert (tmp_path / "run" / "lightning_logs").is_dir()
