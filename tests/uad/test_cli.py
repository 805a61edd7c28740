"""The commands of the contract on tiny images, and every mistake answered by one line and exit code 2."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import files_of_at_most
from image_folders import SIZE, make_class, noise, save
from PIL import Image

from uad import cli

FIGURES = {"image_auroc", "pixel_auroc", "aupro", "image_f1"}
IMPORTS_NOTHING_HEAVY = """
import sys
from uad import cli
cli.main(sys.argv[1:])
heavy = {"torch", "lightning", "onnx", "onnxruntime", "openvino", "sklearn", "PIL"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
SCORES_WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "lightning"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from uad import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS if name != "fit")])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS_NOTHING_HEAVY, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: uad")


def test_help_of_fit_fits_a_page_and_points_at_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    assert cli.main(["fit", "--model", "stfpm", "--help"]) == 0
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 80
    assert all(flag in page for flag in ("--out", "--resume", "--model.backbone", "--model.readout", "--data.root"))
    assert "--trainer.max_epochs MAX" not in page and "uad fit --trainer.help" in page
    assert page.index("--model.lr") < page.index("--data.batch_size")
    assert cli.main(["fit", "--trainer.help"]) == 0
    assert "--trainer.max_epochs MAX_EPOCHS" in capsys.readouterr().out
    assert cli.main(["fit", "--ckpt", "model.ckpt", "--help"]) == 0
    assert "--model.quantized_teacher" in capsys.readouterr().out


def test_the_name_of_a_model_is_a_flag_or_stands_in_the_file(error_of: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    fit = ("fit", "--data.root", tmp_path, "--out", tmp_path / "run")
    (tmp_path / "a.yaml").write_text("model:\n  name: vit\n")
    for given in (["--model", "vit"], ["--model=vit"], ["--model.name", "vit"], ["--config", tmp_path / "a.yaml"]):
        assert "unknown model 'vit': choose one of stfpm" in error_of(*fit, *given)
    assert "--ckpt" not in error_of("fit", "--data.root", tmp_path) and "--out is missing" in error_of("fit")
    message = error_of(*fit, "--model", "stfpm", "--ckpt", tmp_path / "model.ckpt")
    assert "--model stfpm: leave it out" in message


def test_fit_leaves_a_run(tiny_run: Any) -> None:
    assert {"config.yaml", "run.json", "train.csv", "last.ckpt", "best.ckpt", "model.ckpt", "metrics.json"} <= {
        path.name for path in tiny_run.out.iterdir()
    }
    rows = list(csv.DictReader((tiny_run.out / "train.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    metrics = json.loads((tiny_run.out / "metrics.json").read_text())
    assert set(metrics["classes"]) == {"bolt", "nut"} and set(metrics) >= FIGURES


def test_test_writes_every_figure_and_score(tiny_run: Any, tmp_path: Path) -> None:
    root, report, scores = tiny_run.root, tmp_path / "report.json", tmp_path / "scores.csv"
    reference = str(tiny_run.out / "model.ckpt")
    command = ["test", str(tiny_run.onnx("int8")), "--reference", reference, "--data.root", str(root)]
    assert cli.main([*command, "--json", str(report), "--scores", str(scores)]) == 0
    figures = json.loads(report.read_text())
    assert {"model", "runtime", "precision", "classes", "agreement"} | FIGURES <= set(figures)
    assert figures["precision"] == "int8"
    assert {"spearman", "max_abs_map_diff", "flipped"} <= set(figures["classes"]["nut"]["agreement"])
    assert figures["classes"]["nut"]["n_good"] == 3 and figures["classes"]["nut"]["n_bad"] == 3
    assert len(list(csv.DictReader(scores.read_text().splitlines()))) == 12


def test_a_checkpoint_and_its_fp32_file_score_alike(tiny_run: Any, tmp_path: Path) -> None:
    scores = {}
    for name, model in (("ckpt", tiny_run.out / "model.ckpt"), ("onnx", tiny_run.onnx("fp32"))):
        arguments = ["test", str(model), "--data.root", str(tiny_run.root), "--scores", str(tmp_path / name)]
        assert cli.main(arguments) == 0
        scores[name] = [float(row["score"]) for row in csv.DictReader((tmp_path / name).read_text().splitlines())]
    np.testing.assert_allclose(scores["onnx"], scores["ckpt"], rtol=1e-3)
    assert len(set(scores["ckpt"])) > 6


def test_scoring_needs_no_torch(tiny_run: Any, tmp_path: Path) -> None:
    for command in (
        ["test", str(tiny_run.onnx("fp32")), "--data.root", str(tiny_run.root)],
        ["export", str(tiny_run.onnx("fp32")), "--precision", "int8", "--calibration-data", "random-normal"]
        + ["--calibration-images", "2", "--out", str(tmp_path / "int8.onnx")],
        ["check", str(tiny_run.onnx("int8"))],
        ["predict", str(tiny_run.onnx("int8")), str(tiny_run.root / "nut/test"), "--out", str(tmp_path / "out")],
    ):
        done = subprocess.run([sys.executable, "-c", SCORES_WITHOUT_TORCH, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_int8_needs_no_checkpoint(tiny_run: Any, tmp_path: Path) -> None:
    shared = ["--precision", "int8", "--calibration-data", str(tiny_run.root), "--calibration-images", "4"]
    assert cli.main(["export", str(tiny_run.onnx("fp32")), *shared, "--out", str(tmp_path / "int8.onnx")]) == 0
    assert (tmp_path / "int8.onnx").read_bytes() == tiny_run.onnx("int8").read_bytes()


@pytest.mark.slow
def test_bench_measures_in_turns(real_run: Any, tmp_path: Path) -> None:
    models = [str(real_run.out / "model.ckpt"), str(real_run.onnx("int8"))]
    assert cli.main(["bench", *models, "--seconds", "0.1", "--threads", "1", "--json", str(tmp_path / "b.json")]) == 0
    first, second = json.loads((tmp_path / "b.json").read_text())
    assert (first["runtime"], first["ratio_to_first"]) == ("torch", 1.0)
    assert second["precision"] == "int8" and second["ram_mb"] < first["ram_mb"]
    assert second["latency_ms"]["p50"] <= second["latency_ms"]["p90"] <= second["latency_ms"]["p99"]


def test_predict_writes_a_decision_and_an_overlay_for_each_image(tiny_run: Any, tmp_path: Path) -> None:
    inputs = [str(tiny_run.root / "nut" / "test"), str(tiny_run.root / "bolt" / "test" / "spot" / "000.png")]
    assert cli.main(["predict", str(tiny_run.onnx("int8")), *inputs, "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["nut"] * 6 + ["bolt"]
    for row in rows:
        assert row["decision"] == ("defect" if float(row["score"]) > float(row["threshold"]) else "good")
        with Image.open(row["overlay"]) as overlay:
            assert overlay.size == (2 * SIZE, SIZE)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 7


def test_predict_takes_the_class_from_a_flag(tiny_run: Any, tmp_path: Path) -> None:
    image = str(save(noise(1), tmp_path / "photo.png"))
    model, out = str(tiny_run.onnx("fp32")), tmp_path / "out"
    assert cli.main(["predict", model, image, "--class", "bolt", "--out", str(out)]) == 0
    (row,) = csv.DictReader((out / "predictions.csv").read_text().splitlines())
    assert row["class"] == "bolt"


def test_predict_passes_over_its_own_overlays_and_names_an_image_once(tiny_run: Any, tmp_path: Path) -> None:
    save(noise(1), tmp_path / "photo.png")
    inputs = [str(tmp_path), str(tmp_path / "photo.png")]
    for more in ([], ["--overwrite"]):
        assert cli.main(["predict", str(tiny_run.onnx("fp32")), *inputs, "--out", str(tmp_path / "out"), *more]) == 0
        assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 1


def test_settings_come_from_a_file_and_flags_win(tiny_run: Any, tmp_path: Path) -> None:
    settings = tmp_path / "test.yaml"
    settings.write_text(f"data:\n  root: {tiny_run.root}\n  classes: [nut]\njson: {tmp_path / 'a.json'}\n")
    command = ["test", str(tiny_run.onnx("fp32")), "--config", str(settings), "--json", str(tmp_path / "b.json")]
    assert cli.main(command) == 0
    assert not (tmp_path / "a.json").exists()
    assert list(json.loads((tmp_path / "b.json").read_text())["classes"]) == ["nut"]


def test_doctor_names_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "onnxruntime: works" in capsys.readouterr().out


def test_mistakes_on_the_command_line(error_of: Callable[..., str], tiny_run: Any, tmp_path: Path) -> None:
    model, data = tiny_run.onnx("fp32"), tiny_run.root
    assert "unknown command 'tset'" in error_of("tset")
    export = ("export", model, "--out", tmp_path / "x.onnx")
    message = error_of(*export, "--precision", "int4")
    assert "int4" in message and all(name in message for name in ("fp32", "fp16", "int8"))
    message = error_of(*export, "--precision", "int8", "--calibrator", "mse")
    assert all(name in message for name in ("mse", "entropy", "percentile", "minmax"))
    message = error_of("test", model, "--data.root", data, "--runtime", "tflite")
    assert all(name in message for name in ("tflite", "openvino", "onnxruntime"))
    assert "has no class screw: it has bolt, nut" in error_of(
        "test", model, "--data.root", data, "--data.classes", "[screw]"
    )
    assert "--calibration-data" in error_of(*export, "--precision", "int8")
    assert "--calibration-images 0: give at least 1" in error_of(
        *export, "--precision", "int8", "--calibration-data", data, "--calibration-images", 0
    )
    assert "holds 12 good images, 2 of which are kept to judge, 500 were asked" in error_of(
        *export, "--precision", "int8", "--calibration-data", data, "--calibration-images", 500
    )
    assert ".onnx" in error_of("export", model, "--out", tmp_path / "x.bin")
    for precision, asked in (("int8", "fp16"), ("fp16", "int8")):
        again = error_of("export", tiny_run.onnx(precision), "--out", tmp_path / "x.onnx", "--precision", asked)
        assert f"is {precision} already: export from the checkpoint" in again
    assert not list(tmp_path.iterdir())


def test_mistakes_in_files(error_of: Callable[..., str], tiny_run: Any, tmp_path: Path) -> None:
    assert "no such file" in error_of("test", tmp_path / "absent.onnx", "--data.root", tiny_run.root)
    (tmp_path / "cut.onnx").write_bytes(tiny_run.onnx("fp32").read_bytes()[:1000])
    assert "damaged" in error_of("bench", tmp_path / "cut.onnx")
    assert "damaged" in error_of("predict", tmp_path / "cut.onnx", tiny_run.root, "--out", tmp_path / "out")
    (tmp_path / "cut.png").write_bytes((tiny_run.root / "nut/test/good/000.png").read_bytes()[:300])
    message = error_of("predict", tiny_run.onnx("fp32"), tmp_path, "--out", tmp_path / "out", "--strict")
    assert "cut.png" in message
    assert "no such file or folder" in error_of("predict", tiny_run.onnx("fp32"), "nowhere", "--out", tmp_path / "out")
    message = error_of("predict", tiny_run.onnx("fp32"), tiny_run.root, "--class", "screw", "--out", tmp_path / "out")
    assert "unknown class 'screw': the model knows bolt, nut" in message


def test_an_output_that_cannot_be_written(error_of: Callable[..., str], tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "x"
    assert "cannot write" in error_of("export", tiny_run.onnx("fp32"), "--out", below / "m.onnx")
    assert "cannot write" in error_of("predict", tiny_run.onnx("fp32"), tiny_run.root, "--out", below)
    assert "cannot write" in error_of("fit", "--data.root", tiny_run.root, "--out", below, "--model.weights", "none")


def test_an_output_is_refused_before_the_work_by_its_own_flag(
    error_of: Callable[..., str], tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines import benchmark
    from uad.evaluation import evaluate

    def no_work(*_: Any) -> None:
        raise AssertionError("it went to work")

    monkeypatch.setattr(evaluate, "evaluate", no_work)
    monkeypatch.setattr(benchmark, "benchmark", no_work)
    (tmp_path / "file").touch()
    model, below = tiny_run.onnx("fp32"), tmp_path / "file" / "x.json"
    for command, flag in (("test", "--json"), ("test", "--scores"), ("bench", "--json")):
        root = ("--data.root", tiny_run.root) if command == "test" else ()
        message = error_of(command, model, *root, flag, below)
        assert f"choose another with {flag}" in message and "--out" not in message


def test_the_table_is_printed_though_the_file_cannot_be_written(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_run.onnx("fp32")
    with files_of_at_most(10):
        assert cli.main(["test", str(model), "--data.root", str(tiny_run.root), "--json", str(tmp_path / "a")]) == 2
    printed = capsys.readouterr()
    assert "| mean" in printed.out and "cannot write" in printed.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_figures_go_where_the_output_goes(tiny_run: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uad.cli", "test", str(tiny_run.onnx("fp32")), "--data.root", str(tiny_run.root)]
    ended = subprocess.run([*command, "--json", "/dev/stdout"], check=True, capture_output=True, text=True)
    table, _, figures = ended.stdout.partition("{")
    assert "| mean" in table and json.loads("{" + figures)["runtime"]


def test_names_of_files_that_are_no_text_are_printed_and_written(tiny_run: Any, tmp_path: Path) -> None:
    name = tmp_path / "nut" / "test" / "good" / os.fsdecode(b"pi\xe8ce.png")
    save(noise(0), tmp_path / "nut" / "test" / "good" / "a.png").rename(name)
    command = [sys.executable, "-m", "uad.cli", "test", str(tiny_run.onnx("fp32")), "--data.root", str(tmp_path)]
    for locale in ("C", "C.UTF-8", "POSIX"):
        environment = dict(os.environ, LC_ALL=locale)
        out = ["--scores", str(tmp_path / "scores.csv")]
        ended = subprocess.run([*command, *out], check=False, capture_output=True, env=environment)
        assert ended.returncode == 0, ended.stderr
        assert b"pi\xe8ce.png" in (tmp_path / "scores.csv").read_bytes()
    name.write_text("no image")
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2 and "ce.png (not an image)" in ended.stderr and "Traceback" not in ended.stderr


def test_check_answers_with_its_exit_code(tiny_run: Any, error_of: Callable[..., str], tmp_path: Path) -> None:
    small = tmp_path / "cpu.onnx"
    assert cli.main(["export", str(tiny_run.onnx("int8")), "--target", "cpu", "--out", str(small)]) == 0
    assert cli.main(["check", str(small), "--target", "cpu"]) == 0
    assert cli.main(["check", str(small), "--target", "jetson-xavier-nx"]) == 1
    assert "no such file" in error_of("check", tmp_path / "absent.onnx")


def test_a_bar_is_taken_away_when_the_work_is_broken_off(capsys: pytest.CaptureFixture[str]) -> None:
    from uad.progress import phases, progress

    with pytest.raises(KeyboardInterrupt), progress("Counting", 3) as step:
        step()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), phases("Building"):
        raise KeyboardInterrupt
    assert "Counting" not in capsys.readouterr().err
    with progress("Counting", 1) as step:
        step()
    assert "Counting" in capsys.readouterr().err


def test_fit_refuses_bad_folders_before_training(error_of: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    fit = ("fit", "--model.weights", "none", "--out", tmp_path / "run", "--data.root")
    assert "no such folder" in error_of(*fit, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in error_of(*fit, tmp_path / "empty")
    make_class(tmp_path / "images", "nut")
    bad = tmp_path / "images/nut/train/good/zero.png"
    bad.write_bytes(b"")
    other = tmp_path / "images/nut/test/good/text.png"
    other.write_text("no image")
    message = error_of(*fit, tmp_path / "images")
    assert "zero.png" in message and "text.png" in message
    assert not (tmp_path / "run").exists()


def test_fit_refuses_bad_settings(error_of: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    make_class(tmp_path / "images", "nut")
    fit = ("fit", "--data.root", tmp_path / "images", "--out", tmp_path / "run")
    message = error_of(*fit, "--model.backbone", "vgg", "--model.weights", "none")
    assert "unknown backbone 'vgg'" in message and "mobilenet_v2" in message
    assert "--model.bakcbone is no setting of STFPM" in error_of(*fit, "--model.bakcbone", "resnet18")
    assert "no such file" in error_of(*fit, "--model.weights", tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    assert "damaged" in error_of(*fit, "--model.weights", tmp_path / "text.pth")
    assert "--resume" in error_of("fit", "--resume", tmp_path)
    for flag, value in (("--data.image_size", 100), ("--data.batch_size", 0), ("--data.held_out", 1.5)):
        assert f"{flag} {value}" in error_of(*fit, "--model.weights", "none", flag, value)
    assert "--false-positive-rate 1.0" in error_of(*fit, "--model.weights", "none", "--false-positive-rate", 1)


def test_numbers_that_make_no_sense(error_of: Callable[..., str], tiny_run: Any) -> None:
    model = tiny_run.onnx("fp32")
    for flag, value in (("--batch", 0), ("--threads", -1), ("--seconds", 0)):
        assert flag.lstrip("-") in error_of("bench", model, flag, value)


def test_a_folder_without_test_images_is_refused(error_of: Callable[..., str], tiny_run: Any, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "parts" / "0.png")
    assert "holds no test images" in error_of("test", tiny_run.onnx("fp32"), "--data.root", tmp_path / "parts")


def test_fit_on_a_plain_folder_has_no_figures(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    for index in range(4):
        save(noise(index), tmp_path / "parts" / f"{index}.png")
    fit = ["fit", "--data.root", str(tmp_path / "parts"), "--out", str(tmp_path / "run"), "--model.weights", "none"]
    assert cli.main([*fit, "--data.image_size", "64", "--trainer.max_epochs", "1"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["image_auroc"] is None


def test_the_command_line_offers_what_the_packages_have() -> None:
    from export.calibrate import CALIBRATORS
    from export.check import TARGETS
    from uad.commands import choices
    from uad.exporting.settings import Calibrator

    assert set(Calibrator.__args__) == {*CALIBRATORS, "tensorrt-entropy"}
    assert set(choices.Target.__args__) == set(TARGETS)
    assert set(choices.Checked.__args__) == {*TARGETS, "jetson-xavier-nx-dla"}


def test_a_reader_of_standard_output_that_has_gone_is_no_traceback() -> None:
    command = [sys.executable, "-c", "import sys; from uad.cli import main; sys.exit(main(sys.argv[1:]))", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141 and process.stderr.read() == b""
    process.stderr.close()
