"""Training is repeatable, goes on after a stop, and stops when the loss is not a number."""

import csv
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_folders import make_class

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from small_fit import FIT, REAL  # noqa: E402

from uad import cli  # noqa: E402
from uad.models import model_class  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training.callbacks import SyntheticAuroc, in_words  # noqa: E402
from uad.training.fit import epochs_of, has_no_length  # noqa: E402
from uad.training.settings import set_up  # noqa: E402


def fit(root: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert cli.main(["fit", "--data.root", str(root), "--out", str(out), *FIT, *flags]) == 0
    return state(out)


def state(out: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = torch.load(out / "model.ckpt", weights_only=True)["state_dict"]
    return tensors


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def epochs(out: Path) -> list[str]:
    return [row["epoch"] for row in csv.DictReader((out / "train.csv").read_text().splitlines())]


def sleep_in_each_step(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    whole = STFPM.loss

    def slow(self: Any, batch: Any) -> Any:
        time.sleep(seconds)
        return whole(self, batch)

    monkeypatch.setattr(STFPM, "loss", slow)


def test_two_runs_with_one_seed_give_one_result_and_another_seed_another(tiny_run: Any, tmp_path: Path) -> None:
    again = fit(tiny_run.root, tmp_path / "again", "--trainer.max_epochs", "2")
    other = fit(tiny_run.root, tmp_path / "other", "--trainer.max_epochs", "2", "--seed", "1")
    assert same(state(tiny_run.out), again)
    assert not same(state(tiny_run.out), other)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_a_run_that_was_killed_goes_on(unit: str, tiny_run: Any, tmp_path: Path) -> None:
    out, count = tmp_path / "run", 6
    arguments = ["fit", "--data.root", str(tiny_run.root), "--out", str(out), *FIT, *REAL]
    steps = int((tiny_run.out / "train.csv").read_text().splitlines()[1].split(",")[1])  # of an epoch
    arguments += [f"--trainer.max_{unit}", str(count if unit == "epochs" else count * steps)]
    process = subprocess.Popen([sys.executable, "-m", "uad.cli", *arguments], stderr=subprocess.DEVNULL)
    try:
        while not (out / "train.csv").is_file() or len(epochs(out)) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL and not (out / "model.ckpt").exists()
    assert cli.main(["fit", "--resume", str(out)]) == 0
    assert epochs(out) == [str(epoch) for epoch in range(count)] and (out / "model.ckpt").is_file()


def test_a_run_that_failed_goes_on_where_it_stopped(
    tiny_run: Any, tmp_path: Path, error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    arguments = ["fit", "--data.root", str(tiny_run.root), "--out", str(out), *FIT, "--trainer.max_epochs", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(STFPM, "training_step", _failing_from_epoch(1))
        with pytest.raises(MemoryError):
            cli.main(arguments)
    assert epochs(out) == ["0"] and not (out / "model.ckpt").exists()
    assert "own settings" in error_of("fit", "--resume", out, "--seed", "9")
    assert cli.main(["fit", "--resume", str(out)]) == 0
    assert epochs(out) == ["0", "1", "2"]
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 6


def _failing_from_epoch(epoch: int) -> Callable[..., Any]:
    whole = STFPM.training_step

    def step(self: Any, batch: Any, index: int) -> Any:
        if self.current_epoch == epoch:
            raise MemoryError
        return whole(self, batch, index)

    return step


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    tiny_run: Any, tmp_path: Path, error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = STFPM.training_step

    def poisoned(self: Any, batch: Any, index: int) -> Any:
        if self.current_epoch == 1:
            with torch.no_grad():
                next(self.network.student.parameters()).fill_(float("nan"))
        return whole(self, batch, index)

    monkeypatch.setattr(STFPM, "training_step", poisoned)
    out = tmp_path / "run"
    fit_arguments = ["fit", "--data.root", tiny_run.root, "--out", out, *FIT, "--trainer.max_epochs", "3"]
    message = error_of(*fit_arguments)
    assert "not a number" in message and "last.ckpt" in message
    kept = torch.load(out / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())
    assert not (out / "model.ckpt").exists()


def test_the_last_checkpoint_is_of_the_last_epoch_though_the_first_was_better(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse_each_epoch(self: Any, batch: Any, index: int) -> None:
        self.log("val_loss", float(self.current_epoch), batch_size=len(batch.label))

    monkeypatch.setattr(STFPM, "validation_step", worse_each_epoch)
    out = tmp_path / "run"
    fit(tiny_run.root, out, "--trainer.max_epochs", "3")
    assert torch.load(out / "best.ckpt", weights_only=True)["epoch"] == 0
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [("stfpm", True), ("dcam", True), pytest.param("reverse_distillation", False, marks=pytest.mark.slow)],
)
def test_a_model_is_given_drawn_defects_where_it_restores_them(
    name: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, seen = model_class(name).loss, []

    def seen_loss(self: Any, batch: Any) -> Any:
        if self.training:
            seen.append(batch.drawn is not None)
        return loss(self, batch)

    monkeypatch.setattr(model_class(name), "loss", seen_loss)
    make_class(tmp_path / "images", "nut", train=8)
    one = ("--model", name, *REAL, "--trainer.max_epochs", "1")  # no decoder fits the tiny one
    fit(tmp_path / "images", tmp_path / "run", *one)
    assert seen and set(seen) == {expected}


def test_two_images_of_one_class_are_enough(tmp_path: Path) -> None:
    make_class(tmp_path / "images", "nut", train=2)
    tensors = fit(tmp_path / "images", tmp_path / "run", "--trainer.max_epochs", "1")
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_the_best_epoch_becomes_the_model(tiny_run: Any) -> None:
    rows = list(csv.DictReader((tiny_run.out / "train.csv").read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["val_loss"]))
    kept = torch.load(tiny_run.out / "best.ckpt", weights_only=True)
    assert kept["epoch"] == int(best["epoch"])


def test_kept_targets_train_what_computed_ones_do(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("uad.training.fit._keep_targets", lambda *whole: seen.append(whole))
    computed = fit(tiny_run.root, tmp_path / "computed", "--trainer.max_epochs", "2")
    kept = state(tiny_run.out)
    assert seen and not same(kept, computed)  # float16 leaves its trace
    for name in computed:
        if name.startswith("student.") and name.endswith("weight"):
            torch.testing.assert_close(kept[name], computed[name], atol=2e-2, rtol=0)


def test_the_teacher_sees_each_image_once_while_it_trains(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, whole = 0, STFPM.targets

    def counted(self: Any, image: Any) -> Any:
        nonlocal count
        count += len(image)
        return whole(self, image)

    monkeypatch.setattr(STFPM, "targets", counted)
    fit(tiny_run.root, tmp_path / "run", "--trainer.max_epochs", "3")
    assert count == 1 + 12  # one to see whether there is anything to keep
    assert not (tmp_path / "run" / "targets").exists()


def test_what_is_kept_serves_a_run_that_goes_on(tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    fit(tiny_run.root, out, "--trainer.max_epochs", "2", "--keep-cache")
    before = (out / "targets" / "key.json").stat().st_mtime_ns
    assert cli.main(["fit", "--resume", str(out), "--trainer.max_epochs", "3", "--keep-cache"]) == 0
    assert (out / "targets" / "key.json").stat().st_mtime_ns == before
    assert cli.main(["fit", "--resume", str(out), "--trainer.max_epochs", "4"]) == 0
    assert not (out / "targets").exists() and epochs(out) == ["0", "1", "2", "3"]


def test_learning_is_seen_without_labels(tiny_run: Any) -> None:
    rows = list(csv.DictReader((tiny_run.out / "train.csv").read_text().splitlines()))
    assert [0 <= float(row["synthetic_auroc"]) <= 1 for row in rows] == [True, True]
    for row in rows:
        of_classes = [float(row[f"synthetic_auroc of {name}"]) for name in ("bolt", "nut")]
        assert sum(of_classes) / 2 == pytest.approx(float(row["synthetic_auroc"]), abs=1e-6)


@pytest.mark.filterwarnings("always::engines.errors.UadWarning")
def test_a_class_that_was_learned_better_before_is_told(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def falls(self: Any, trainer: Any, module: Any) -> None:
        figures = {0: (0.9, 0.8), 1: (0.9, 0.95), 2: (0.9, 0.75)}[trainer.current_epoch]
        module.log_dict({f"synthetic_auroc of {name}": value for name, value in zip(("bolt", "nut"), figures)})
        module.log("val_loss", 3.0 - trainer.current_epoch)  # the last epoch is kept

    monkeypatch.setattr(SyntheticAuroc, "on_validation_epoch_end", falls)
    monkeypatch.setattr(STFPM, "validation_step", lambda *given: None)
    fit(tiny_run.root, tmp_path / "run", "--trainer.max_epochs", "3")
    said = " ".join(capsys.readouterr().err.split())
    assert "nut was learned better in an earlier epoch: its synthetic_auroc fell from 0.95 to 0.75" in said
    assert "bolt was learned better" not in said


def test_a_run_of_an_earlier_commit_goes_on_without_the_figures_of_its_classes(tiny_run: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(tiny_run.root, out, "--trainer.max_epochs", "2")
    rows = list(csv.reader((out / "train.csv").read_text().splitlines()))
    before = [[*row[:5], row[-1]] for row in rows]
    (out / "train.csv").write_text("".join(",".join(row) + "\n" for row in before))
    assert cli.main(["fit", "--resume", str(out), "--trainer.max_epochs", "3"]) == 0
    after = list(csv.DictReader((out / "train.csv").read_text().splitlines()))
    assert [row["synthetic_auroc of nut"] == "nan" for row in after] == [True, True, False]
    assert [row["train_loss"] for row in after[:2]] == [row[2] for row in before[1:]]


def test_the_time_that_is_to_come_is_told(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep_in_each_step(monkeypatch, 0.1)
    fit(tiny_run.root, tmp_path / "run", "--trainer.max_epochs", "10")  # of 2 steps, of which 7 are to come
    (told,) = re.findall(r"the steps will take about (\d+) s", capsys.readouterr().out)
    assert 1 <= int(told) <= 3


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (99, "99 s"), (130, "2 min"), (12_600, "3.5 h")])
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(("classes", "expected"), [(2, 20), (4, 20), (8, 40), (11, 55)])
def test_more_classes_take_as_many_more_steps(
    classes: int, expected: int, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"root": tiny_run.root, "image_size": 64, "batch_size": 4}
    model = {"weights": "none", "backbone": "mobilenet_v2"}
    setup = set_up(model, data, {"accelerator": "cpu"}, None, 0, tmp_path)
    setup.data.setup("fit")
    more = [f"part{number}" for number in range(classes - 2)]
    monkeypatch.setattr(setup.data, "class_names", [*setup.data.class_names, *more])
    setup.model.steps = 40  # of 2 in an epoch
    assert epochs_of(setup) == expected


@pytest.mark.parametrize(
    ("steps", "trainer", "expected"),
    [  # there are 10 images to train on, 2 whole batches of 4
        (41, {}, 20),
        (4, {}, 3),
        (9999, {}, 100),
        (40, {"limit_train_batches": 1}, 40),
        (40, {"limit_train_batches": 0.5}, 40),
        (40, {"accumulate_grad_batches": 2}, 40),
    ],
)
def test_the_epochs_make_up_the_steps_of_the_model_within_bounds(
    tiny_run: Any, tmp_path: Path, steps: int, trainer: dict[str, Any], expected: int
) -> None:
    data = {"root": tiny_run.root, "image_size": 64, "batch_size": 4}
    model = {"weights": "none", "backbone": "mobilenet_v2"}
    setup = set_up(model, data, {"accelerator": "cpu", **trainer}, None, 0, tmp_path)
    setup.data.setup("fit")
    setup.model.steps = steps
    assert has_no_length(setup) and epochs_of(setup) == expected


def test_a_length_that_is_given_is_kept(tmp_path: Path) -> None:
    for given in ({"max_epochs": 2}, {"max_steps": 5}, {"max_time": "00:01:00:00"}):
        trainer = {"accelerator": "cpu", **given}
        model = {"weights": "none", "backbone": "mobilenet_v2"}
        assert not has_no_length(set_up(model, {"root": "images"}, trainer, None, 0, tmp_path))


def test_a_run_notes_the_epochs_that_were_chosen(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STFPM, "steps", 8)
    out = tmp_path / "run"
    fit(tiny_run.root, out)
    assert epochs(out) == ["0", "1", "2", "3"] and "max_epochs: 4" in (out / "config.yaml").read_text()
    last = torch.load(out / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["total_steps"] == 8


def test_a_profile_says_where_the_time_of_a_step_goes(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep_in_each_step(monkeypatch, 0.5)
    fit(tiny_run.root, tmp_path / "run", "--trainer.max_epochs", "2", "--profile")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a step takes")]
    seconds = float(line.split()[3])
    shares = [int(share) for share in re.findall(r"(\d+)%", line)]
    assert 0.5 < seconds < 5 and sum(shares) == pytest.approx(100, abs=2) and "(mean of 3)" in line
    assert shares[1] * seconds / 100 > 0.45  # the forward pass is where it sleeps


def test_a_profile_of_one_step_says_that_it_takes_two(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--profile")
    fit(tiny_run.root, tmp_path / "run", *more)
    assert "from two steps on" in capsys.readouterr().out
