"""`uad export` with layers left in float and layers explained, on a tiny graph of which one layer is bad; no torch."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import random_images, save_tiny, set_constant, tiny, with_blind_weights
from image_folders import bolts_and_nuts, make_class, noise, save
from PIL import Image

import engines
from engines.graph import constants
from engines.metadata import ModelInfo
from engines.model_file import load_model, read_info
from engines.qdq import integer_weights
from export import sensitivity
from export.check import TARGETS
from export.pixels import PIXELS
from uad import cli
from uad.exporting import post_training
from uad.exporting.float_layers import Agreement, Comparison, FloatLayers

A_HALF = Agreement(0.5)
BAD = "/student/layer1/conv2/Conv"
RUNTIME = ["--runtime", "onnxruntime"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bolts_and_nuts(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = with_blind_weights(tiny(), "student/layer1/conv2")
    return save_tiny(tmp_path_factory.mktemp("model") / "fp32.onnx", graph)


def export(model: Path, root: Path, out: Path, precision: str, *more: object) -> str:
    """Run `uad export`; returns the file it wrote."""
    compared = RUNTIME if precision == "auto" or "--explain" in more else []
    command = ["export", model, "--precision", precision, "--calibration-data", root, *compared, "--out", out, *more]
    assert cli.main([str(argument) for argument in command]) == 0
    return str(out)


def test_auto_leaves_the_bad_layer_in_float(
    model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(model, root, tmp_path / "tight.onnx", "auto", "--min-agreement", 0.8)
    said = capsys.readouterr().out
    info = read_info(out)
    assert info.precision == "mixed" and BAD in info.float_layers and len(info.float_layers) < 6
    assert info.calibration is not None and info.calibration["agreement"]["spearman"] >= 0.8
    assert f"{len(info.float_layers)} of 12 layers left in float: " in said
    assert all(name in said for name in info.float_layers)
    assert f"{info.calibration['agreement']['spearman']:.4f} (plain int8: " in said
    assert "on 26 good images not used to calibrate" in said
    assert cli.main(["check", out, "--target", "jetson-xavier-nx"]) == 0
    test = ["test", out, "--reference", str(model), "--data.root", str(root), *RUNTIME]
    assert cli.main(test) == 0


def test_auto_judges_the_graph_that_it_writes(
    model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are chosen with biases corrected and the read-out fitted again, and the figure is that of the file."""
    judged: list[tuple[list[onnx.NodeProto], dict[str, np.ndarray], float]] = []
    plain = Comparison.agreement

    def agreement(self: Comparison, graph: onnx.ModelProto, info: ModelInfo) -> Agreement:
        found = plain(self, graph, info)
        judged.append((list(graph.graph.node), constants(graph), found.spearman))
        return found

    monkeypatch.setattr(Comparison, "agreement", agreement)
    written = load_model(export(model, root, tmp_path / "a.onnx", "auto", "--min-agreement", 0.8, "--target", "cpu"))
    nodes, values = list(written.graph.node), constants(written)
    alike = [
        spearman
        for graph, constant, spearman in judged
        if graph == nodes and all(np.array_equal(values[name], constant[name]) for name in values)
    ]
    assert len(alike) == 2 and alike[0] == alike[1]  # as it was chosen, and as it was written
    assert any(name.endswith("corrected_bias") for name in values)
    info = read_info(tmp_path / "a.onnx")
    assert info.calibration is not None and info.calibration["agreement"]["spearman"] == alike[0]


@pytest.mark.filterwarnings("always::engines.errors.UadWarning")
def test_an_agreement_that_the_file_misses_is_said(
    model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(post_training, "choose_float_layers", lambda *given: FloatLayers([], 12, A_HALF, A_HALF, 26, 0))
    export(model, root, tmp_path / "a.onnx", "auto", "--min-agreement", 0.8)
    assert "uad: warning: the agreement of 0.8 that was asked for is missed" in capsys.readouterr().err


def test_auto_with_a_loose_drop_is_int8(model: Path, root: Path, tmp_path: Path) -> None:
    loose = read_info(export(model, root, tmp_path / "loose.onnx", "auto", "--min-agreement", -1))
    plain = read_info(export(model, root, tmp_path / "int8.onnx", "int8", "--calibration-images", 22))
    assert (loose.precision, loose.float_layers) == ("int8", [])
    assert loose.residual_scales == plain.residual_scales  # the same images calibrated


def test_auto_with_no_drop_at_all_may_end_in_fp32(model: Path, root: Path, tmp_path: Path) -> None:
    info = read_info(export(model, root, tmp_path / "exact.onnx", "auto", "--min-agreement", 1))
    assert info.precision in ("mixed", "fp32") and (info.precision == "mixed") == bool(info.float_layers)


def test_labels_count_where_they_are_given(
    model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(model, root, tmp_path / "a.onnx", "auto", "--min-agreement", -1, "--validation-data", root)
    assert "mean image AUROC falls by " in capsys.readouterr().out
    export(model, root, tmp_path / "a.onnx", "auto", "--min-agreement", -1)
    assert "AUROC" not in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_explain_names_the_bad_layer_first(precision: str, model: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    more: list[Any] = ["--explain", tmp_path / "why", "--calibration-images", 16]
    more += ["--min-agreement", 0.9] if precision == "auto" else []
    info = read_info(export(model, root, tmp_path / "a.onnx", precision, *more))
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["layers.csv", "layers.md", "layers.png"]
    with open(tmp_path / "why" / "layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["layer"] == BAD
    assert {row["layer"] for row in rows if row["precision"] == "fp32"} == set(info.float_layers)
    lines = (tmp_path / "why" / "layers.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| /")]
    assert len(table) == len(rows) and table[0].startswith(f"| {BAD}")
    judged = 32 if precision == "int8" else 26
    assert f"On {judged} good images that calibration did not use" in " ".join(lines)
    with Image.open(tmp_path / "why" / "layers.png") as image:
        assert image.format == "PNG" and min(image.size) > 200


def test_explain_judges_graphs_with_their_biases_corrected(
    model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    judged: list[onnx.ModelProto] = []
    infer_model = sensitivity.infer_model

    def noted(graph: onnx.ModelProto, *more: Any) -> engines.Prediction:
        judged.append(graph)
        return infer_model(graph, *more)

    monkeypatch.setattr(sensitivity, "infer_model", noted)
    export(model, root, tmp_path / "a.onnx", "int8", "--explain", tmp_path / "why")
    corrected = [any(name.endswith("/corrected_bias") for name in constants(graph)) for graph in judged]
    assert corrected == [False] + 12 * [True]  # the float graph, and one for each layer


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ("folder", ["--calibration-images", 44], "On 4 good images that calibration did not use"),
        ("random-normal", [], "On 32 random-normal images"),
    ],
)
def test_explain_says_on_which_images_it_judged(
    source: str, more: list[Any], said: str, model: Path, root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    data = root if source == "folder" else Path(source)
    export(model, data, tmp_path / "a.onnx", "int8", "--explain", tmp_path, *more)
    assert said in (tmp_path / "layers.md").read_text()


def test_explain_does_not_change_the_file(model: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    export(model, root, tmp_path / "a.onnx", "int8")
    export(model, root, tmp_path / "b.onnx", "int8", "--explain", tmp_path)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_mistakes(error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path) -> None:
    export = ("export", model, "--out", tmp_path / "x.onnx", "--calibration-data", root, "--precision")
    assert "--min-agreement is for --precision auto, not int8" in error_of(*export, "int8", "--min-agreement", 1)
    assert "--validation-data is for --precision auto" in error_of(*export, "fp16", "--validation-data", root)
    fp32 = ("export", model, "--out", tmp_path / "x.onnx", "--precision", "fp32")
    assert "--explain is for --precision int8 or auto, not fp32" in error_of(*fp32, "--explain", tmp_path)
    assert "--min-agreement 1.1" in error_of(*export, "auto", "--min-agreement", "1.1")
    message = error_of(*export, "auto", "--calibration-data", "random-normal")
    assert "give --calibration-data a folder" in message
    message = error_of(*export, "auto", "--calibration-images", 40)
    assert "holds 48 good images, 26 of which are kept to judge, 40 were asked" in message
    for name in ("few", "plain"):
        make_class(tmp_path / name, "nut", train=10 if name == "few" else 24, good=2, defects=0)
    message = error_of(*export, "auto", "--calibration-data", tmp_path / "few")
    assert "at least 8 good images of each class that calibration did not use, here 6 of nut" in message
    message = error_of(*export, "auto", "--validation-data", tmp_path / "plain")
    assert "holds no class with good images and defects" in message
    assert "no such folder" in error_of(*export, "auto", "--validation-data", tmp_path / "absent")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        (["fp32", "--calibrator", "entropy"], "--calibrator is for --precision int8 or auto, not fp32"),
        (["fp32", "--calibration-data", "absent"], "--calibration-data is for --precision int8 or auto, not fp32"),
        (["fp32", "--percentile", "5"], "--percentile is for --precision int8 or auto, not fp32"),
        (["fp32", "--runtime", "onnxruntime"], "--runtime is for --precision auto, not fp32"),
        (["fp32", "--seed", "1"], "--seed is for --precision int8 or auto, not fp32"),
        (["fp16", "--calibrator", "entropy"], "--calibrator is for --precision int8 or auto, not fp16"),
        (["fp16", "--calibration-classes", "[x]"], "--calibration-classes is for --precision int8 or auto, not fp16"),
        (["int8", "--min-agreement", "0.9"], "--min-agreement is for --precision auto, not int8"),
        (["int8", "--runtime", "onnxruntime"], "--runtime is for --precision auto, or --explain"),
        (["int8", "--batch", "2"], "--batch is for --out FILE.plan"),
        (["int8", "--triton-backend", "openvino"], "--triton-backend is for --triton"),
    ],
)
def test_a_part_that_does_not_apply_is_refused(
    error_of: Callable[..., str], given: list[str], refused: str, model: Path, tmp_path: Path
) -> None:
    assert refused in error_of("export", model, "--out", tmp_path / "x.onnx", "--precision", *given)


def test_auto_needs_a_folder(error_of: Callable[..., str], model: Path, tmp_path: Path) -> None:
    message = error_of("export", model, "--precision", "auto", "--out", tmp_path / "x.onnx")
    assert "auto needs --calibration-data: a folder of good images" in message and "random-normal" not in message


def test_explain_into_a_file_is_refused(error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "file").write_text("in the way")
    export = ("export", model, "--out", tmp_path / "x.onnx", "--calibration-data", root, "--precision", "int8")
    message = error_of(*export, "--explain", tmp_path / "file")
    assert "cannot write to the folder" in message and "choose another with --explain" in message


def test_missing_matplotlib_is_said_before_the_model_is_read(
    error_of: Callable[..., str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    export = ("export", tmp_path / "absent.onnx", "--out", tmp_path / "x.onnx", "--calibration-data", root)
    message = error_of(*export, "--precision", "int8", "--explain", tmp_path / "why")
    assert "--explain needs matplotlib" in message and "'.[plots]'" in message
    assert not (tmp_path / "why").exists()


def test_a_mixed_file_is_not_exported_again(
    error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path
) -> None:
    mixed = export(model, root, tmp_path / "mixed.onnx", "auto", "--min-agreement", 0.9)
    again = ("export", mixed, "--out", tmp_path / "x.onnx", "--calibration-data", root, "--precision", "int8")
    assert "is mixed already: export from the checkpoint or its fp32 file" in error_of(*again)


def test_the_target_decides_how_weights_are_stored(model: Path, root: Path, tmp_path: Path) -> None:
    files = {name: export(model, root, tmp_path / f"{name}.onnx", "int8", "--target", name) for name in TARGETS}
    weights = {name: len(integer_weights(load_model(file))) for name, file in files.items()}
    assert weights == {"cpu": 12, "tensorrt": 0, "jetson-xavier-nx": 0}
    images = random_images(4)
    scores = []
    for file in files.values():
        with engines.load(file, "onnxruntime") as engine:
            scores.append(engine.infer(images).score.tolist())
    assert scores[0] == scores[1] == scores[2]


def test_an_int8_file_is_turned_into_that_of_another_target(
    error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = export(model, root, tmp_path / "small.onnx", "int8", "--target", "cpu")
    large = export(model, root, tmp_path / "large.onnx", "int8")
    capsys.readouterr()
    assert cli.main(["check", str(small)]) == 1
    assert "INT8 initializer" in capsys.readouterr().out
    again = tmp_path / "again.onnx"
    for source, target, expected in ((small, "jetson-xavier-nx", large), (large, "cpu", small)):
        assert cli.main(["export", source, "--target", target, "--out", str(again)]) == 0
        assert read_info(again) == read_info(expected)
        assert constants(load_model(again)).keys() == constants(load_model(expected)).keys()
    message = error_of("export", model, "--calibration-data", root, "--out", again)
    assert "--calibration-data is for --precision int8, auto or fp16" in message
    message = error_of("export", small, "--calibration-data", root, "--out", again)
    assert "is int8 already: leave out --calibration-data" in message


def test_the_summary_says_what_thresholds_promise(
    model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two classes of 24 images as the model was trained on, of which two each were held out.
    export(model, root, tmp_path / "a.onnx", "int8")
    said = capsys.readouterr().out
    assert "thresholds for 5% false alarms rest on few held-out images" in said and "nut 33% (2 images)" in said
    assert "thresholds chosen again on 4 of 4 held-out images" in said
    for index in range(30):
        save(noise(9000 + index), tmp_path / "more" / "nut" / "train" / "good" / f"{index}.png")
    export(model, tmp_path / "more", tmp_path / "b.onnx", "int8")
    said = capsys.readouterr().out
    assert "thresholds stay those of fp32, for none of the images was held out in training" in said
    assert re.search(r"nut: \d+% of the good images given lie above its threshold, 5% was asked for", said)
    assert cli.main(["export", str(model), "--precision", "fp16", "--out", str(tmp_path / "c.onnx")]) == 0
    assert "no images given: read-out and thresholds stay those of fp32" in capsys.readouterr().out


def test_seven_bits_on_request(error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path) -> None:
    file = export(model, root, tmp_path / "seven.onnx", "int8", "--weight-bits", 7, "--target", "cpu")
    values = constants(load_model(file))
    assert max(np.abs(values[name]).max() for name in integer_weights(load_model(file))) == 63
    assert read_info(file).weight_bits == 7
    for precision, bits in (("int8", 6), ("fp16", 7), ("auto", 7)):
        command = ["export", model, "--out", tmp_path / "x.onnx", "--precision", precision, "--weight-bits", bits]
        assert f"--weight-bits {bits}: give 7 or 8, with --precision int8" in error_of(*command)


def test_a_file_with_values_that_are_not_finite_is_refused_everywhere(
    error_of: Callable[..., str], model: Path, root: Path, tmp_path: Path
) -> None:
    broken = load_model(model)
    set_constant(broken, "head.half", np.array(np.nan, np.float32))
    onnx.save(broken, str(tmp_path / "nan.onnx"))
    file = tmp_path / "nan.onnx"
    for command in (
        ["predict", file, root / "nut" / "test", "--out", tmp_path / "out"],
        ["test", file, "--data.root", root],
        ["bench", file],
        ["export", file, "--precision", "int8", "--calibration-data", root, "--out", tmp_path / "x.onnx"],
    ):
        assert "nan.onnx: head.half holds values that are not finite" in error_of(*command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.onnx"]


def test_calibration_classes_are_those_that_calibrate(model: Path, root: Path, tmp_path: Path) -> None:
    given = ["--calibration-images", 6, "--calibration-classes"]
    one = read_info(export(model, root, tmp_path / "one.onnx", "int8", *given, "[nut]")).calibration
    both = read_info(export(model, root, tmp_path / "both.onnx", "int8", *given, "[nut,bolt]")).calibration
    assert one is not None and one["classes"] == ["nut"]
    assert both is not None and both["classes"] == ["bolt", "nut"]


def test_percentile_decides_how_much_is_clipped(model: Path, root: Path, tmp_path: Path) -> None:
    def scales(percentile: float) -> dict[str, float]:
        file = load_model(export(model, root, tmp_path / "p.onnx", "int8", "--percentile", percentile))
        fixed = constants(file)
        quantize = [node for node in file.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in fixed]
        return {node.input[0]: float(fixed[node.input[1]]) for node in quantize}

    half, whole = scales(50), scales(100)
    assert half.pop(PIXELS) == whole.pop(PIXELS) == 1.0  # pixels are integers already
    assert half and all(half[name] < 0.8 * whole[name] for name in whole)


def test_calibration_images_of_any_size_are_resized(model: Path, tmp_path: Path) -> None:
    for index, size in enumerate([(31, 70), (8, 8), (200, 100)]):
        Image.new("RGB", size, (60 * index, 90, 120)).save(tmp_path / f"{index}.png")
    export(model, tmp_path, tmp_path / "int8.onnx", "int8")


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--calibration-images", "500"],
            "48 good images, 4 of which are kept to judge, 500 were asked: lower --calibration-images",
        ),
        (["--calibration-classes", "[gear]"], "has no class gear: it has bolt, nut"),
        (["--percentile", "101"], "give a number above 0, at most 100"),
        (["--calibrator", "entropy", "--percentile", "99"], "--percentile is for --calibrator percentile, not entropy"),
        (["--calibration-data", "random-normal", "--calibration-classes", "[nut]"], "not random-normal"),
    ],
)
def test_calibration_mistakes(
    error_of: Callable[..., str], flags: list[str], message: str, model: Path, root: Path, tmp_path: Path
) -> None:
    command = ["export", model, "--precision", "int8", "--calibration-data", root, "--out", tmp_path / "a.onnx"]
    assert message in error_of(*command, *flags)


def test_empty_calibration_folder(error_of: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["export", model, "--precision", "int8", "--calibration-data", tmp_path / "empty"]
    assert "holds no images" in error_of(*command, "--out", tmp_path / "a.onnx")
