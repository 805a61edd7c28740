"""engines.load and the contract that every installed runtime keeps."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import (
    FEATURES,
    SIZE,
    build_tiny,
    dark_and_bright,
    node_of,
    not_finite_for_grey,
    quantize,
    random_images,
    reference_outputs,
    save_tiny,
    set_constant,
    tiny,
    tiny_info,
    with_readout,
)
from onnx import numpy_helper

import engines
from engines.cpu import cpu_flags, saturates
from engines.errors import ModelFileError, RuntimeNotInstalled, UadWarning, UserError
from engines.metadata import OUTPUTS, ModelInfo
from engines.model_file import save_model
from engines.qdq import for_cpu, for_tensorrt
from engines.unsigned import to_unsigned
from export.calibrate import calibrator
from export.quantize import with_seven_bits

RUN_GRAPHS = [name for name, each in engines.RUNTIMES.items() if each.suffix != ".ckpt"]
every_runtime = pytest.mark.parametrize("runtime", RUN_GRAPHS, indirect=True)


@pytest.fixture
def runtime(request: pytest.FixtureRequest, fake_gpu: Callable[..., Any]) -> str:
    """A runtime that is installed; for TensorRT, which cannot be here, a fake that runs plans in ONNX Runtime."""
    if request.param == "tensorrt":
        fake_gpu()
    elif engines.missing(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model.onnx")


def made_for(
    runtime: str, folder: Path, model: onnx.ModelProto | None = None, info: ModelInfo | None = None, max_batch: int = 4
) -> Path:
    """A model file that a runtime runs."""
    model = tiny() if model is None else model
    info = info or tiny_info(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    if runtime == "tensorrt":
        return build_tiny(folder / "a.plan", model, info, max_batch=max_batch)
    save_model(model, info, folder / "a.onnx")
    return folder / "a.onnx"


# The contract of a runtime --------------------------------------------------------------------------------------------


@every_runtime
@pytest.mark.parametrize("backbone", FEATURES)
def test_same_result_as_the_onnx_reference(runtime: str, backbone: str, tmp_path: Path) -> None:
    model = tiny(backbone, size=32)
    images = random_images(2, size=32)
    score, anomaly_map = reference_outputs(model, images, ["score", "anomaly_map"])
    with engines.load(made_for(runtime, tmp_path, model), runtime, batch=2) as engine:
        prediction = engine.infer(images)
    # Sums in another order: some 1e-6 for float32. bfloat16, which OpenVINO takes unasked, would be off by 1e-2.
    assert score.min() > 0.1
    np.testing.assert_allclose(prediction.score, score, rtol=1e-4)
    np.testing.assert_allclose(prediction.anomaly_map, anomaly_map, rtol=1e-4, atol=1e-6)  # some pixels are near 0


@every_runtime
def test_the_class_is_told_where_the_graph_tells_it(runtime: str, tmp_path: Path) -> None:
    model, images = dark_and_bright()
    index, distance = reference_outputs(model, images, ["class_index", "class_distance"])
    info = tiny_info(outputs=list(OUTPUTS))
    with engines.load(made_for(runtime, tmp_path, model, info), runtime, batch=2) as engine:  # the last batch is filled
        found = engine.infer(images)
    assert index.tolist() == [0, 1, 0, 1, 0] and found.class_index is not None and found.class_index.dtype == np.int32
    np.testing.assert_array_equal(found.class_index, index)
    np.testing.assert_allclose(found.class_distance, distance, rtol=1e-4)
    with engines.load(made_for(runtime, tmp_path), runtime) as engine:
        of_before = engine.infer(images[:1])
    assert of_before.class_index is None and of_before.class_distance is None


@every_runtime
def test_a_class_that_the_description_does_not_have_is_refused(runtime: str, tmp_path: Path) -> None:
    info = tiny_info(outputs=list(OUTPUTS), classes=["bolt"], thresholds={"bolt": 1.0}, held_out={})
    model, images = dark_and_bright()
    with engines.load(made_for(runtime, tmp_path, model, info), runtime) as engine, pytest.raises(
        ModelFileError, match=r"sees classes 0 to 1: it has bolt"
    ):
        engine.infer(images)


@every_runtime
def test_a_class_distance_that_is_not_finite_is_refused(runtime: str, tmp_path: Path) -> None:
    model = with_readout()
    set_constant(model, "head.bank.farthest", np.zeros(2, np.float32))
    path = made_for(runtime, tmp_path, model, tiny_info(outputs=list(OUTPUTS)))
    with engines.load(path, runtime) as engine, pytest.raises(ModelFileError, match="a score that is not finite"):
        engine.infer(random_images(1))


@every_runtime
@pytest.mark.parametrize("backbone", FEATURES)
def test_int8_is_close_to_the_onnx_reference(runtime: str, backbone: str, tmp_path: Path) -> None:
    if runtime == "openvino" and saturates(platform.machine(), cpu_flags()) is not False:
        pytest.skip("OpenVINO's INT8 sums saturate at 16 bits on x86 without VNNI")
    images, model = random_images(8, size=32), tiny(backbone, size=32)
    quantized, info, _ = quantize(model, tiny_info(32), images, calibrator("minmax"))
    is_rewritten = runtime == "onnxruntime" and platform.machine().lower() in ("x86_64", "amd64")
    deployed = to_unsigned(quantized, info.residual_scales) if is_rewritten else quantized
    with engines.load(made_for(runtime, tmp_path, quantized, info), runtime) as engine:
        found = engine.infer(images).anomaly_map
    expected, plain = (reference_outputs(each, images, ["anomaly_map"])[0] for each in (deployed, model))

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sqrt(np.square(one - other).mean()))

    # What INT8 does to the map is there: an engine that ignores Q/DQ would be as far off as that. Ties of rounding move
    # single values by a step, and the layers behind make more of it.
    assert distance(found, expected) < 0.3 * distance(plain, expected)


@every_runtime
def test_a_loaded_engine_has_run_once_in_one_thread(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first run of OpenVINO in two threads at once never ends: see test_first_run.py.
    module_name, class_name = engines.RUNTIMES[runtime].engine.split(":")
    engine_class = getattr(importlib.import_module(module_name), class_name)
    run, runs = engine_class.run, []

    def noted(engine: engines.Engine, images: np.ndarray) -> engines.Prediction:
        runs.append((images.shape, engines._first_run.locked()))
        return run(engine, images)

    monkeypatch.setattr(engine_class, "run", noted)
    engines.load(made_for(runtime, tmp_path), runtime, batch=2).close()
    assert runs == [((2, SIZE, SIZE, 3), True)]


def bright_and_positive() -> tuple[onnx.ModelProto, np.ndarray]:
    """A model and an image by which sums of two products of uint8 and int8 pass 32767 throughout."""
    model = tiny()
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight"):
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), tensor.name))
    return model, np.full((1, SIZE, SIZE, 3), 250, np.uint8)


def test_onnxruntime_is_right_where_16_bit_sums_would_saturate(tmp_path: Path) -> None:
    # Without its exact kernels x86 without VNNI is off by a third.
    model, image = bright_and_positive()
    quantized, info, _ = quantize(model, tiny_info(), image, calibrator("minmax"))
    score = reference_outputs(quantized, image, ["score"])[0]
    with engines.load(made_for("onnxruntime", tmp_path, quantized, info), "onnxruntime") as engine:
        np.testing.assert_allclose(engine.infer(image).score, score, rtol=0.02)


@pytest.mark.parametrize("form", [for_cpu, for_tensorrt])
def test_seven_bit_weights_keep_openvino_right_on_every_cpu(form: Callable[[Any], Any], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, image = bright_and_positive()
    quantized, info, _ = quantize(model, tiny_info(), image, calibrator("minmax"))
    seven = form(with_seven_bits(model, quantized))
    score = reference_outputs(seven, image, ["score"])[0]
    path = made_for("openvino", tmp_path, seven, dataclasses.replace(info, weight_bits=7))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UadWarning)
        with engines.load(path, "openvino") as engine:
            np.testing.assert_allclose(engine.infer(image).score, score, rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("flags", [{"avx2", "avx_vnni"}, {"avx2"}, set()], ids=["vnni", "no-vnni", "not-known"])
def test_openvino_warns_of_int8_that_saturates(
    precision: str, flags: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("engines.openvino")
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino, "cpu_flags", lambda: flags)
    monkeypatch.setattr(openvino.platform, "machine", lambda: "x86_64")
    model, info = tiny(), tiny_info()
    if precision == "int8":
        model, info, _ = quantize(model, info, random_images(1), calibrator("minmax"))
    path = made_for("openvino", tmp_path, model, info)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UadWarning)
        engines.load(path, "openvino").close()
    why = (
        "this CPU has no VNNI, so OpenVINO's INT8 sums saturate and scores are wrong"
        if flags
        else "whether this CPU has VNNI is not known; without it OpenVINO's INT8 sums saturate"
    )
    warning = f"{path}: {why}: use --runtime onnxruntime, or export with --weight-bits 7"
    assert [str(each.message) for each in said if each.category is UadWarning] == (
        [warning] if precision == "int8" and "avx_vnni" not in flags else []
    )


@every_runtime
def test_mixed_runs_like_int8(runtime: str, tmp_path: Path) -> None:
    images = random_images(4)
    model, info, _ = quantize(tiny(), tiny_info(), images, calibrator("minmax"), keep_float=["/teacher/conv1/Conv"])
    predictions = []
    for precision in ("int8", "mixed"):
        path = made_for(runtime, tmp_path, model, dataclasses.replace(info, precision=precision))
        with engines.load(path, runtime) as engine:
            predictions.append(engine.infer(images))
    np.testing.assert_array_equal(predictions[0].anomaly_map, predictions[1].anomaly_map)


@every_runtime
def test_shapes_and_types_are_those_of_a_prediction(runtime: str, tmp_path: Path) -> None:
    with engines.load(made_for(runtime, tmp_path), runtime) as engine:
        prediction = engine.infer(random_images(3))
    assert prediction.score.shape == (3,) and prediction.score.dtype == np.float32
    assert prediction.anomaly_map.shape == (3, SIZE // 4, SIZE // 4) and prediction.anomaly_map.dtype == np.float32


@every_runtime
def test_engine_says_what_it_is(runtime: str, tmp_path: Path) -> None:
    with engines.load(made_for(runtime, tmp_path), runtime, batch=2, threads=1) as engine:
        assert isinstance(engine, engines.Engine)
        assert (engine.runtime, engine.arithmetic, engine.batch) == (runtime, "f32", 2)
        assert engine.info == tiny_info()


@every_runtime
@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_any_number_of_images_gives_what_each_alone_gives(runtime: str, count: int, tmp_path: Path) -> None:
    images = random_images(count)
    path = made_for(runtime, tmp_path)
    with engines.load(path, runtime, batch=4) as four, engines.load(path, runtime) as one:
        together = four.infer(images)
        alone = [one.infer(image[None]) for image in images]
    assert together.score.shape == (count,) and together.anomaly_map.shape == (count, SIZE // 4, SIZE // 4)
    np.testing.assert_allclose(together.score, np.concatenate([each.score for each in alone]), rtol=1e-4)
    maps = np.concatenate([each.anomaly_map for each in alone])
    np.testing.assert_allclose(together.anomaly_map, maps, rtol=1e-4, atol=1e-6)


@every_runtime
def test_images_need_not_be_contiguous(runtime: str, tmp_path: Path) -> None:
    images = random_images(2)
    turned = images.transpose(0, 2, 1, 3)
    assert not turned.flags.c_contiguous
    with engines.load(made_for(runtime, tmp_path), runtime) as engine:
        expected = engine.infer(np.ascontiguousarray(turned))
        np.testing.assert_array_equal(engine.infer(turned).score, expected.score)


@every_runtime
def test_infer_does_not_change_the_images(runtime: str, tmp_path: Path) -> None:
    images = random_images(3)
    before = images.copy()
    with engines.load(made_for(runtime, tmp_path), runtime, batch=2) as engine:
        engine.infer(images)
    np.testing.assert_array_equal(images, before)


@every_runtime
def test_result_belongs_to_the_caller(runtime: str, tmp_path: Path) -> None:
    with engines.load(made_for(runtime, tmp_path), runtime) as engine:
        first = engine.infer(random_images(1, seed=1))
        score, anomaly_map = first.score.copy(), first.anomaly_map.copy()
        second = engine.infer(random_images(1, seed=2))
        assert (second.score != score).all()
    np.testing.assert_array_equal(first.score, score)
    np.testing.assert_array_equal(first.anomaly_map, anomaly_map)


@every_runtime
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((1, SIZE, SIZE, 3), np.int8),
        np.zeros((1, SIZE + 1, SIZE, 3), np.uint8),
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        np.zeros((1, SIZE, SIZE, 4), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
    ],
    ids=["float32", "int8", "height", "NCHW", "RGBA", "no batch", "no image"],
)
def test_infer_rejects(runtime: str, images: np.ndarray, tmp_path: Path) -> None:
    with engines.load(made_for(runtime, tmp_path), runtime) as engine, pytest.raises(
        ValueError, match="uint8.*16, 16, 3"
    ) as error:
        engine.infer(images)
    assert f"{images.dtype} {images.shape}" in str(error.value)


@every_runtime
def test_a_score_that_is_not_finite_names_the_image_and_the_model(runtime: str, tmp_path: Path) -> None:
    path = made_for(runtime, tmp_path, not_finite_for_grey())
    images = random_images(3)
    images[1] = 127
    with engines.load(path, runtime, batch=2) as engine:
        assert engine.infer(images[::2]).score.shape == (2,)
        with pytest.raises(ModelFileError, match=f"{path.name} gives image 1 a score that is not finite"):
            engine.infer(images)
        with pytest.raises(ModelFileError, match=f"{path.name} gives b.png a score that is not finite"):
            engine.infer(images, ["a.png", "b.png", "c.png"])


@every_runtime
def test_a_map_of_another_size_than_the_description_says_is_refused(runtime: str, tmp_path: Path) -> None:
    path = made_for(runtime, tmp_path, info=tiny_info(map_stride=8))
    with engines.load(path, runtime) as engine, pytest.raises(ModelFileError, match=r"a map of \(4, 4\), .* \(2, 2\)"):
        engine.infer(random_images(1))


@every_runtime
def test_close_may_be_called_twice(runtime: str, tmp_path: Path) -> None:
    engine = engines.load(made_for(runtime, tmp_path), runtime)
    engine.close()
    engine.close()
    with pytest.raises(UserError, match="is closed: load it again"):
        engine.infer(random_images(1))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"], indirect=True)
def test_a_graph_whose_input_was_renamed_is_one_line(runtime: str, tmp_path: Path) -> None:
    model = tiny()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "photo" if name == "image" else name
    model.graph.input[0].name = "photo"
    path = save_tiny(tmp_path / "a.onnx", model)
    with pytest.raises(ModelFileError, match="a.onnx.*(photo|image)"):
        engines.load(path, runtime)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"], indirect=True)
def test_graph_that_the_runtime_cannot_load_is_a_model_file_error(runtime: str, tmp_path: Path) -> None:
    model = tiny()
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    node = node_of(model, "/teacher/relu/Relu")
    node.op_type, node.domain = "Unknown", "nobody.knows"
    path = save_tiny(tmp_path / "a.onnx", model)
    with pytest.raises(ModelFileError, match="a.onnx: .* cannot load it") as error:
        engines.load(path, runtime)
    assert "\n" not in str(error.value)


# Load, whatever runtime -----------------------------------------------------------------------------------------------


def only(*names: str) -> Any:
    """A find_spec that knows these modules alone."""

    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, None) if name in names else None

    return find_spec


def test_installed_runtimes_are_the_ones_that_can_be_found_best_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", only("onnxruntime"))
    assert engines.installed_runtimes() == ["onnxruntime"]
    monkeypatch.setattr(importlib.util, "find_spec", only("onnxruntime", "openvino", "tensorrt"))
    assert engines.installed_runtimes() == ["openvino", "onnxruntime"]  # TensorRT needs pycuda too
    monkeypatch.setattr(importlib.util, "find_spec", only("onnxruntime", "tensorrt", "pycuda"))
    assert engines.installed_runtimes() == ["onnxruntime", "tensorrt"]


@every_runtime
def test_no_runtime_asked_for_takes_the_first_installed_that_runs_such_files(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_for(runtime, tmp_path)
    monkeypatch.setattr(engines, "missing", lambda name: [] if name == runtime else [name])
    with engines.load(path) as engine:
        assert engine.runtime == runtime


def test_runtime_that_is_not_installed_is_named(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", only("onnxruntime"))
    with pytest.raises(RuntimeNotInstalled, match="openvino is not installed: pip install openvino"):
        engines.load(model_path, "openvino")


def test_no_runtime_at_all_says_what_to_install(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", only())
    with pytest.raises(
        RuntimeNotInstalled,
        match="no runtime for .onnx files is installed: pip install openvino, or pip install onnxruntime",
    ):
        engines.load(model_path)


def test_unknown_runtime_lists_the_known(model_path: Path) -> None:
    with pytest.raises(UserError, match="unknown runtime 'tflite': choose one of openvino, onnxruntime"):
        engines.load(model_path, "tflite")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a.onnx: no such file"):
        engines.load(tmp_path / "a.onnx")


def test_corrupt_file_is_named(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "a.onnx")
    path.write_bytes(b"\xff" + path.read_bytes())
    with pytest.raises(ModelFileError, match="a.onnx is not an ONNX file, or is damaged"):
        engines.load(path)


@pytest.mark.parametrize("name", ["a.engine", "a"])
def test_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / name)
    with pytest.raises(ModelFileError, match=f"{name}: engines run .onnx, .plan, .ckpt files"):
        engines.load(path)


@pytest.mark.parametrize("runtime", ["tensorrt"], indirect=True)
def test_a_file_for_another_runtime_is_refused(runtime: str, tmp_path: Path) -> None:
    plan, model = made_for(runtime, tmp_path), save_tiny(tmp_path / "a.onnx")
    for path, name, wanted in (
        (plan, "onnxruntime", ".onnx"),
        (plan, "openvino", ".onnx"),
        (model, "tensorrt", ".plan"),
    ):
        with pytest.raises(ModelFileError, match=f"{path.name}: {name} runs {wanted} files"):
            engines.load(path, name)


def test_what_tensorrt_lacks_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for here, lacks in (((), ("tensorrt", "pycuda")), (("tensorrt",), ("pycuda",)), (("pycuda",), ("tensorrt",))):
        monkeypatch.setattr(importlib.util, "find_spec", only(*here))
        with pytest.raises(RuntimeNotInstalled, match="tensorrt is not installed") as error:
            engines.load(tmp_path / "a.plan", "tensorrt")
        said = str(error.value).partition("is not installed")[2]
        assert [name for name in ("tensorrt", "pycuda") if f"{name} is missing" in said] == list(lacks)
        assert ("JetPack" in said) == ("tensorrt" in lacks) and ("nvcc" in said) == ("pycuda" in lacks)


def test_model_of_another_program_is_refused(tmp_path: Path) -> None:
    onnx.save(tiny(), str(tmp_path / "a.onnx"))
    with pytest.raises(ModelFileError, match="a.onnx is not a model of uad"):
        engines.load(tmp_path / "a.onnx")


def test_path_may_be_a_string(model_path: Path) -> None:
    with engines.load(str(model_path)) as engine:
        assert engine.info == tiny_info()
