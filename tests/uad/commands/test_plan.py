"""`uad export --out engine.plan`, `uad test`, `uad bench`, `uad predict` and `uad doctor` as on a device; TensorRT and
pycuda are fakes. One test is a process of its own without torch, see `fakes.site`.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest
from fakes.cuda import Gpu
from fakes.tensorrt import RELEASES
from graphs import save_tiny, with_readout
from image_folders import bolts_and_nuts

from engines.plan_file import read_description
from uad import cli

pytest.importorskip("polygraphy", reason="polygraphy is not installed")

TESTS = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "lightning", "torchmetrics"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from uad.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Done(NamedTuple):
    """What a call of `uad` ended with."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bolts_and_nuts(tmp_path_factory.mktemp("images"))


def environment(release: str, gpu: str) -> dict[str, str]:
    """Of a process that finds TensorRT and pycuda."""
    paths = [TESTS / "fakes" / "site", TESTS, TESTS.parent]
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "FAKE_TENSORRT": release, "FAKE_GPU": gpu}


@pytest.fixture
def uad(
    fake_gpu: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs `uad` on a machine with a release of TensorRT, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, release: str = "8.5.2", gpu: str = "Xavier") -> Done:
        fake_gpu(release, Gpu(gpu))
        for name, value in environment(release, gpu).items():  # of the processes that `uad bench` starts
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "fp32.onnx", with_readout())


def scores(path: Path) -> np.ndarray:
    with open(path, newline="") as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


@pytest.mark.slow
def test_a_plan_is_built_and_run_without_torch(model: Path, root: Path, tmp_path: Path) -> None:
    calibrate = ["--precision", "int8", "--calibration-data", root, "--calibration-images", 8]
    for arguments in (
        ["export", model, *calibrate, "--out", "engine.plan"],
        ["test", "engine.plan", "--data.root", root, "--data.classes", "nut"],
        ["predict", "engine.plan", root / "nut" / "test", "--out", "out"],
    ):
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
        around = {**os.environ, **environment("8.5.2", "Xavier"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=around, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("release", [RELEASES[0], RELEASES[-1]])
def test_from_a_float_file_to_a_measured_int8_plan(
    release: str, uad: Run, model: Path, root: Path, tmp_path: Path
) -> None:
    calibrate = ["--precision", "int8", "--calibrator", "entropy", "--calibration-data", root]
    calibrate += ["--calibration-classes", "[bolt,nut]"]
    done = uad("export", model, *calibrate, "--out", "engine.plan", release=release)
    assert done.returncode == 0, done.stderr
    assert "engine.plan: int8, " in done.stdout and f" MB by TensorRT {release}" in done.stdout
    assert "read-out fitted again on" in done.stdout and "what it warns of is in engine.plan.json" in done.stdout
    info, plan = read_description(tmp_path / "engine.plan")
    assert info.precision == "int8" and info.calibration is not None and info.calibration["calibrator"] == "entropy"
    given = f"--precision int8 --calibration-data {root.name} --calibration-classes [bolt,nut] --calibrator entropy"
    assert plan.command == f"uad export fp32.onnx {given} --out engine.plan"
    assert uad("export", model, *calibrate, "--out", "int8.onnx", release=release).returncode == 0
    found = {}
    for file in ("engine.plan", "int8.onnx"):
        flags = ["--data.root", root, "--scores", f"{file}.csv", "--json", f"{file}.figures"]
        done = uad("test", file, *flags, "--runtime", "onnxruntime", release=release)
        assert done.returncode == 0, done.stderr
        found[file] = json.loads((tmp_path / f"{file}.figures").read_text())
    assert [found[file]["runtime"] for file in found] == ["tensorrt", "onnxruntime"]
    plan_scores, file_scores = (scores(tmp_path / f"{file}.csv") for file in found)
    np.testing.assert_allclose(plan_scores, file_scores, rtol=0.05)  # ONNX Runtime rounds once more: engines.unsigned


@pytest.mark.slow
def test_the_commands_of_the_jetsons_guide_run_one_after_the_other(uad: Run, root: Path, tmp_path: Path) -> None:
    """As the first owner of a Jetson types them, in a folder with model.onnx, IMAGES and PHOTOS."""
    blocks = (TESTS.parent / "docs" / "jetson.md").read_text(encoding="utf-8").split("```\n")[1::2]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("uad ")]
    commands = [shlex.split(line)[1:] for line in lines]
    build = ["export", "test", "bench", "predict"]
    dla = ["export", "check", "export", "export", "test", "bench"]
    assert [command[0] for command in commands] == ["doctor", *build, *dla, "doctor"]
    save_tiny(tmp_path / "model.onnx", with_readout())
    (tmp_path / "IMAGES").symlink_to(root)
    (tmp_path / "PHOTOS").symlink_to(root / "bolt" / "test")
    said = {}
    for command in commands:
        quick = ["--seconds", "0.1"] if "--report" in command else []
        done = uad(*(word if word != "60" else "0.1" for word in command), *quick)
        assert done.returncode == 0, done.stderr
        said[command[0]] = said.get(command[0], "") + done.stdout
    assert "tensorrt: works" in said["doctor"] and "report.json: read it before" in said["doctor"]
    assert "MB by TensorRT 8.5.2" in said["export"] and "layers on DLA 1" in said["export"]
    assert "a DLA would run" in said["check"] and "together, at the same time" in said["bench"]
    assert "Spearman" in said["test"] and "copy in ms" in said["bench"] and "GPU MB" in said["bench"]
    assert (tmp_path / "RESULTS" / "predictions.csv").is_file()


def test_test_agrees_with_the_file_that_the_plan_was_built_from(
    uad: Run, model: Path, root: Path, tmp_path: Path
) -> None:
    assert uad("export", model, "--out", "engine.plan").returncode == 0
    reference = ["--reference", model, "--runtime", "onnxruntime"]
    done = uad("test", "engine.plan", *reference, "--data.root", root, "--json", "t.json", "--scores", "plan.csv")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "t.json").read_text())
    assert report["runtime"] == "tensorrt" and report["precision"] == "fp32"
    assert report["agreement"]["spearman"] == pytest.approx(1.0) and report["agreement"]["flipped"] == 0.0
    assert len(set(scores(tmp_path / "plan.csv"))) > 8


def test_a_small_int8_file_becomes_a_plan(uad: Run, model: Path, root: Path, tmp_path: Path) -> None:
    calibrate = ["--precision", "int8", "--calibration-data", root, "--target", "cpu"]
    assert uad("export", model, *calibrate, "--out", "small.onnx").returncode == 0
    done = uad("export", "small.onnx", "--max-batch", 4, "--out", "engine.plan")
    assert done.returncode == 0, done.stderr
    info, plan = read_description(tmp_path / "engine.plan")
    assert info.precision == "int8" and "INT8" in plan.flags and plan.batch["max"] == 4
    assert plan.command == "uad export small.onnx --max-batch 4 --out engine.plan"


def test_an_int8_plan_without_nodes_on_a_dla(uad: Run, model: Path, root: Path, tmp_path: Path) -> None:
    calibrate = ["--precision", "int8", "--calibrator", "tensorrt-entropy", "--calibration-data", root]
    calibrate += ["--implicit", "--calibration-cache", "int8.cache", "--device", "dla:1", "--gpu-fallback"]
    done = uad("export", model, *calibrate, "--out", "engine.plan")
    assert done.returncode == 0, done.stderr
    assert " tensors with a range, " in done.stdout and " layers on DLA 1" in done.stdout
    info, plan = read_description(tmp_path / "engine.plan")
    assert info.calibration is not None and info.calibration["calibrator"] == "tensorrt-entropy"
    assert plan.command.endswith("--implicit --device dla:1 --gpu-fallback --out engine.plan")
    assert (tmp_path / "int8.cache").read_text().startswith("TRT-8502-EntropyCalibration2\n")
    assert uad("export", model, *calibrate[:6], "--out", "int8.onnx").returncode == 0
    for file in ("engine.plan", "int8.onnx"):
        flags = ["--data.root", root, "--scores", f"{file}.csv", "--runtime", "onnxruntime"]
        assert uad("test", file, *flags).returncode == 0
    plan_scores, file_scores = (scores(tmp_path / f"{file}.csv") for file in ("engine.plan", "int8.onnx"))
    np.testing.assert_allclose(plan_scores, file_scores, rtol=0.05)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--implicit"], "--implicit is for int8, and this would be fp32: add --precision int8"),
        (["--implicit", "--calibration-cache", "int8.cache"], "this would be fp32"),
        (["--device", "dla:0"], "--device dla:0 computes in int8 and fp16: add --precision int8 or fp16"),
        (["--device", "dla:0", "--max-batch", "4"], "takes a fixed number of images: give --batch"),
        (["--gpu-fallback"], "--gpu-fallback is for --device dla:0 or dla:1"),
        (["--int8-only"], "--int8-only is for int8, and this would be fp32: add --precision int8"),
        (["--int8-only", "--device", "dla:0"], "--device dla:0 computes in int8 and fp16: leave out --int8-only"),
        (["--calibration-cache", "int8.cache"], "--calibration-cache is for --implicit"),
        (["--precision", "fp16", "--device", "dla:0"], "layers cannot run there"),
        (["--precision", "int8", "--calibration-data", "random-normal", "--device", "dla:1"], "add --implicit"),
    ],
)
def test_what_a_dla_or_implicit_int8_wants_is_told(flags: list[str], told: str, uad: Run, model: Path) -> None:
    done = uad("export", model, *flags, "--out", "engine.plan")
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert not (model.parent / "engine.plan").exists()


def test_a_file_goes_into_a_model_repository(uad: Run, model: Path, tmp_path: Path) -> None:
    done = uad("export", model, "--out", "parts.plan", "--max-batch", 4, "--triton", "models")
    assert done.returncode == 0, done.stderr
    assert "in models/parts" in done.stdout
    assert (tmp_path / "models/parts/1/model.plan").read_bytes() == (tmp_path / "parts.plan").read_bytes()
    assert "max_batch_size: 4" in (tmp_path / "models/parts/config.pbtxt").read_text()
    done = uad(
        "export", model, "--out", "cpu.onnx", "--target", "cpu", "--triton", "models", "--triton-backend", "openvino"
    )
    assert done.returncode == 0 and 'backend: "openvino"' in (tmp_path / "models/cpu/config.pbtxt").read_text()
    done = uad("export", model, "--out", "x.plan", "--triton", "models", "--triton-backend", "openvino")
    assert done.returncode == 2 and "--triton-backend is for --triton and an .onnx file" in done.stderr


def test_check_says_which_layers_a_dla_would_run(uad: Run, model: Path) -> None:
    done = uad("check", model, "--target", "jetson-xavier-nx-dla")
    assert done.returncode == 0, done.stderr
    first, second, half, third, *others = done.stdout.splitlines()
    assert first.endswith("nothing that jetson-xavier-nx-dla is known to refuse")
    assert second.startswith("a DLA would run ") and second.endswith(" layers:") and " in fp16: /teacher/" in half
    assert third == "the GPU runs the others, with --gpu-fallback:"
    assert len(others) == 1 and "normalisation and head compute in float32: /normalize/Cast, " in others[0]


def test_implicit_int8_is_for_plans(uad: Run, model: Path) -> None:
    done = uad("export", model, "--implicit", "--out", "a.onnx")
    assert done.returncode == 2 and "--implicit is for --out FILE.plan, not a.onnx" in done.stderr


def test_bench_tells_copies_apart_from_computing(uad: Run, model: Path, tmp_path: Path) -> None:
    assert uad("export", model, "--batch", 2, "--out", "engine.plan").returncode == 0
    done = uad(
        "bench", "engine.plan", model, "--batch", 2, "--seconds", 0.1, "--json", "b.json", "--runtime", "onnxruntime"
    )
    assert done.returncode == 0, done.stderr
    plan, file = json.loads((tmp_path / "b.json").read_text())
    assert (plan["runtime"], plan["batch"]) == ("tensorrt", 2) and file["runtime"] == "onnxruntime"
    assert {name: part["p50"] for name, part in plan["parts_ms"].items()} == {"copy_in": 1, "compute": 1, "copy_out": 4}
    assert plan["device_mem_mb"] > 3 and file["device_mem_mb"] is None and file["parts_ms"] is None
    header = done.stdout.splitlines()[0]
    assert "compute ms" in header and "GPU MB" in header


def test_predict_judges_by_a_plan(uad: Run, model: Path, root: Path, tmp_path: Path) -> None:
    assert uad("export", model, "--batch", 2, "--out", "engine.plan").returncode == 0
    done = uad("predict", "engine.plan", root / "nut" / "test", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "8 images" in done.stdout and (tmp_path / "out" / "predictions.csv").is_file()


@pytest.mark.parametrize("release", [RELEASES[0], RELEASES[-1]])
def test_doctor_builds_and_runs_a_plan(release: str, uad: Run) -> None:
    assert "tensorrt: works" in uad("doctor", release=release).stdout


def test_doctor_reports_a_plan_and_nothing_personal(uad: Run, model: Path, tmp_path: Path) -> None:
    assert uad("export", model, "--precision", "fp16", "--out", "engine.plan").returncode == 0
    flags = ["--model", "engine.plan", "--reference", model, "--seconds", 0.1]
    done = uad("doctor", "--report", "report.json", *flags)
    assert done.returncode == 0, done.stderr
    assert "report.json: read it before you send it" in done.stdout
    text = (tmp_path / "report.json").read_text()
    report = json.loads(text)
    found = report["model"]
    assert any("tensorrt: works" in line for line in report["doctor"])
    assert found["file"]["plan"]["tensorrt"] == "8.5.2.2" and found["file"]["precision"] == "fp16"
    assert len(found["layers"]) > 30 and found["layers"][0]["LayerType"]  # more than names
    assert len(found["scores"]) == len(set(found["scores"])) == len(found["agreement"]["scores"]) == 10
    assert found["agreement"]["spearman"] > 0.9 and found["agreement"]["max_abs_map_diff"] > 0
    assert [timing["runtime"] for timing in found["timings"]][0] == "tensorrt" and found["jetson"] is None
    for personal in (platform.node(), str(tmp_path), "bolt", "engine.plan", str(Path.home())):
        assert personal not in text, personal


def test_a_report_is_refused_before_the_work(uad: Run, model: Path, tmp_path: Path) -> None:
    done = uad("doctor", "--report", model / "report.json")
    assert done.returncode == 2 and "--report" in done.stderr and not done.stdout
    assert "--reference is for --model" in uad("doctor", "--report", "r.json", "--reference", model).stderr
    assert "--model and --reference are for --report FILE" in uad("doctor", "--model", model).stderr


def test_mistakes_are_one_line(uad: Run, model: Path, root: Path, tmp_path: Path) -> None:
    def error(*arguments: object, **machine: str) -> str:
        done = uad(*arguments, **machine)
        assert done.returncode == 2, done.stderr
        *before, last = done.stderr.splitlines()
        assert not any(line.strip() for line in before)  # the bar is taken away
        return last

    assert uad("export", model, "--out", "engine.plan").returncode == 0
    (tmp_path / "text.onnx").write_text("no graph")
    (tmp_path / "foreign.onnx").write_bytes(with_readout().SerializeToString())
    assert "is not an ONNX file" in error("export", "text.onnx", "--out", "x.plan")
    assert "is not a model of uad" in error("export", "foreign.onnx", "--out", "x.plan")
    assert "engine.plan is a TensorRT plan: give the .onnx file" in error("export", "engine.plan", "--out", "x.plan")
    assert "engine.plan is a TensorRT plan: give the .onnx file" in error("check", "engine.plan")
    assert "tensorrt runs .plan files" in error("predict", model, root, "--out", "out", "--runtime", "tensorrt")
    assert "cannot write to the folder" in error("export", model, "--out", model / "x.plan")
    assert "--target cpu is for .onnx files" in error("export", model, "--target", "cpu", "--out", "x.plan")
    assert "give one of them" in error("export", model, "--batch", 1, "--max-batch", 2, "--out", "x.plan")
    assert "--max-batch 0: give at least 1" in error("export", model, "--max-batch", 0, "--out", "x.plan")
    for flag in ("--batch", "--max-batch", "--workspace-mb", "--timing-cache"):
        assert f"{flag} is for --out FILE.plan" in error("export", model, flag, 64, "--out", "x.onnx")
    other = error("predict", "engine.plan", root, "--out", "out", gpu="Orin")
    assert "here is TensorRT 8.5.2.2 on Orin (7.2): build it here with uad export fp32.onnx --out engine.plan" in other
    assert "takes 1 images at once, not 2: give --batch 1" in error(
        "test", "engine.plan", "--data.root", root, "--batch", 2
    )
    assert "takes 1 images at once, not 2" in error("bench", "engine.plan", "--batch", 2)
    for command in (["test", "engine.plan", "--data.root", root], ["bench", "engine.plan"]):
        assert "says what the plan is, and must stay" in error(*command, "--json", "engine.plan.json")
    (tmp_path / "engine.plan.json").unlink()
    assert "engine.plan.json, which says what the plan is, is not beside it" in error("bench", "engine.plan")
    assert not list(tmp_path.glob("x.*")) and not list(tmp_path.glob(".*"))


def test_without_tensorrt_export_says_so_before_it_calibrates(
    error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path
) -> None:
    command = ["export", model, "--precision", "int8", "--calibration-data", root, "--out", tmp_path / "x.plan"]
    assert "TensorRT does not load" in error_of(*command)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/tensorrt.md"])
def test_the_commands_of_a_page_that_make_and_use_plans_run_one_after_the_other(
    page: str, uad: Run, model: Path, root: Path, tmp_path: Path
) -> None:
    lines = (TESTS.parent / page).read_text(encoding="utf-8").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("uad ") and ".plan" in line]
    assert {command[0] for command in commands} >= {"export", "bench"}
    (tmp_path / "IMAGES").symlink_to(root)
    (tmp_path / "PHOTOS").symlink_to(root / "bolt" / "test")
    model.rename(tmp_path / "model.onnx")
    calibrate = ["--precision", "int8", "--calibration-data", "IMAGES"]
    for command in (["export", "model.onnx", *calibrate, "--out", "model.int8.onnx"], *commands):
        done = uad(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "engine.plan").is_file()
