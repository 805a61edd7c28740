"""export.tensorrt: what each release of TensorRT is asked for, on a fake that knows it; see `fakes.tensorrt`.

Polygraphy itself runs. No plan that is built here runs on a GPU.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
import pytest
from fakes.cuda import Gpu
from fakes.tensorrt.api import API, RELEASES, number
from graphs import (
    build_tiny,
    node_of,
    quantize,
    random_images,
    runtime_outputs,
    set_constant,
    tiny,
    tiny_info,
    with_readout,
)

pytest.importorskip("polygraphy", reason="polygraphy is not installed")

import engines
from engines.errors import OutputError, RuntimeNotInstalled, UserError
from engines.graph import constants
from engines.metadata import OUTPUTS, ModelInfo
from engines.plan_file import PlanInfo, read_description
from engines.qdq import for_cpu, for_tensorrt
from export.calibrate import calibrator
from export.errors import ExportError
from export.float16 import to_float16
from export.implicit import without_qdq
from export.placement import place
from export.quantize import collect_histograms
from export.tensorrt import PlanSettings, build_plan, calibrate, default_timing_cache

IMAGES = random_images(4)
PRECISIONS = ("fp32", "fp16", "int8", "mixed")
HINTS = {"INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"}
TYPED = [release for release in RELEASES if number(release) >= (10,)]
HINTED = [release for release in RELEASES if number(release) < (10,)]
every_release = pytest.mark.parametrize("release", RELEASES)
FakeGpu = Callable[..., "tuple[Any, Any]"]


def model_of(precision: str) -> tuple[onnx.ModelProto, ModelInfo]:
    """A model with a regional read-out, in a precision and in the form for TensorRT."""
    model, info = with_readout(), tiny_info(precision=precision, outputs=list(OUTPUTS))
    if precision == "fp16":
        return to_float16(model), info
    if precision in ("int8", "mixed"):
        kept = ["/teacher/conv1/Conv"] if precision == "mixed" else []
        quantized, described, _ = quantize(model, info, IMAGES, calibrator("minmax"), kept)
        return for_tensorrt(quantized), dataclasses.replace(described, precision=precision)
    return model, info


def build(precision: str = "fp32", **settings: Any) -> tuple[bytes, PlanInfo]:
    return build_plan(*model_of(precision), PlanSettings("uad export a.onnx --out a.plan", 64, **settings))


# What TensorRT is asked for -------------------------------------------------------------------------------------------


def test_the_fake_knows_what_each_release_lacks(fake_gpu: FakeGpu) -> None:
    old, _ = fake_gpu("8.5.2")
    assert not hasattr(old.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and not hasattr(old, "IProgressMonitor")
    new, _ = fake_gpu("11.1")
    assert not hasattr(new.BuilderFlag, "INT8") and not hasattr(new.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    logger = new.Logger()
    with pytest.raises(AttributeError, match="Builder has no 'build_engine' in TensorRT 11.1"):
        new.Builder(logger).build_engine  # noqa: B018
    with pytest.raises(TypeError):
        new.Builder("logger")
    assert "set_output_type" in API["10.3.0"]["ILayer"] and "set_output_type" not in API["11.1"]["ILayer"]


@every_release
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [{"batch": 1}, {"batch": 3}, {"max_batch": 4}], ids=["static", "static 3", "dynamic"])
def test_every_release_builds_every_precision(
    release: str, precision: str, batch: dict[str, int], fake_gpu: FakeGpu
) -> None:
    trt, _ = fake_gpu(release)
    _, built = build(precision, **batch)
    (made,) = trt._builds
    quantized, is_half = precision in ("int8", "mixed"), precision == "fp16"
    if release in TYPED:
        assert made.typed and not HINTS & made.flags
    else:
        wanted = {"INT8": quantized, "FP16": quantized or is_half, "OBEY_PRECISION_CONSTRAINTS": True}
        assert not made.typed and HINTS & made.flags == {flag for flag, is_wanted in wanted.items() if is_wanted}
    assert "TF32" not in made.flags  # it rounds float32 to 10 bits
    assert made.workspace == 64 << 20
    least, most = (1, 4) if "max_batch" in batch else (batch["batch"],) * 2
    assert made.profiles == [{"image": ((least, 16, 16, 3), (most, 16, 16, 3), (most, 16, 16, 3))}]
    assert made.network.get_input(0).shape[0] == (-1 if "max_batch" in batch else most)
    assert built.batch == {"min": least, "opt": most, "max": most}
    assert set(built.flags) == made.flags | ({"STRONGLY_TYPED"} if release in TYPED else set())
    assert (built.tensorrt, built.device, built.compute_capability) == (trt.__version__, "Xavier", "7.2")
    assert built.warnings == ["weights were cast from INT64 to INT32"]


@pytest.mark.parametrize("release", HINTED)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_layer_of_normalisation_and_head_is_bound_to_float32(
    release: str, precision: str, fake_gpu: FakeGpu
) -> None:
    trt, _ = fake_gpu(release)
    _, built = build(precision)
    layers = trt._builds[0].network._layers
    quantizers = (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)
    casts = (trt.LayerType.IDENTITY, getattr(trt.LayerType, "CAST", None))
    by_quantizers = {tensor.name for layer in layers if layer.type in quantizers for tensor in layer._inputs}
    scales = [layer for layer in layers if not layer._inputs and layer._outputs[0].name in by_quantizers]
    parts = [layer for layer in layers if layer.name.startswith(("/head/", "/normalize/"))]
    parts = [layer for layer in parts if layer.type not in quantizers and layer not in scales]
    read = {tensor.name for layer in parts for tensor in layer._inputs}
    helpers = [
        layer
        for layer in layers
        if not layer.name.startswith("/") and any(tensor.name in read for tensor in layer._outputs)
    ]
    assert len(parts) > 30 and {layer.name[:8] for layer in helpers} >= {"(Unnamed", "head.rea"}
    bound = 0
    for layer in [*parts, *helpers]:
        floats = [i for i, tensor in enumerate(layer._outputs) if tensor.dtype == trt.DataType.FLOAT]
        assert {i for i in layer._bound if layer._bound[i] == trt.DataType.FLOAT} == set(floats), layer.name
        assert layer.precision_is_set == (bool(floats) and layer.type not in casts), layer.name
        bound += bool(floats)
    assert built.float32_layers >= bound
    free = [layer for layer in layers if layer.name.startswith(("/teacher/", "/student/")) or layer.type in quantizers]
    assert not any(layer.precision_is_set for layer in [*free, *scales])
    assert len(free) > 20


@pytest.mark.parametrize("release", TYPED)
def test_a_typed_network_needs_no_constraints(release: str, fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu(release)
    assert build("fp16")[1].float32_layers == 0
    assert not any(layer.precision_is_set for layer in trt._builds[0].network._layers if release != "11.1")


@every_release
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_computes_what_the_file_says(release: str, precision: str, fake_gpu: FakeGpu, tmp_path: Path) -> None:
    # On 8.x a layer of the head that were left free would be rounded to float16 by the fake, as TensorRT may.
    fake_gpu(release)
    model, info = model_of(precision)
    names = ["score", "anomaly_map"]
    path = build_tiny(tmp_path / "a.plan", model, info, max_batch=4)
    with engines.load(path, batch=4) as engine:
        found = engine.infer(IMAGES)
    rounds = release in HINTED and precision in ("int8", "mixed")  # to float16, between the INT8 layers
    for one, other in zip((found.score, found.anomaly_map), runtime_outputs(model, IMAGES, names)):
        np.testing.assert_allclose(one, other, rtol=0.02 if rounds else 0, atol=0.02 * other.max() if rounds else 0)


@pytest.mark.parametrize("release", HINTED)
def test_layers_that_the_file_keeps_in_float_are_bound_too(release: str, fake_gpu: FakeGpu, tmp_path: Path) -> None:
    trt, _ = fake_gpu(release)
    kept = ["/teacher/conv1/Conv", "/teacher/relu/Relu"]
    model, info = (
        to_float16(with_readout(), kept),
        tiny_info(precision="fp16", float_layers=kept, outputs=list(OUTPUTS)),
    )
    path = build_tiny(tmp_path / "a.plan", model, info)
    bound = {layer.name for layer in trt._builds[0].network._layers if layer.precision_is_set}
    assert bound >= set(kept) and "/student/conv1/Conv" not in bound
    with engines.load(path) as engine:
        found = engine.infer(IMAGES[:1])
    np.testing.assert_array_equal(found.score, runtime_outputs(model, IMAGES[:1], ["score"])[0])


def test_the_fake_rounds_what_is_left_free(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_gpu("8.5.2")
    monkeypatch.setattr("export.tensorrt.hold_in_float32", lambda trt, network, model, also: [])
    model, info = model_of("fp16")
    with engines.load(build_tiny(tmp_path / "a.plan", model, info)) as engine:
        found = engine.infer(IMAGES[:1])
    assert (found.score != runtime_outputs(model, IMAGES[:1], ["score"])[0]).all()


@pytest.mark.parametrize("release", HINTED)
@pytest.mark.parametrize("implicit", [False, True])
def test_beside_int8_float16_is_allowed_unless_it_is_refused(
    implicit: bool, release: str, fake_gpu: FakeGpu, tmp_path: Path
) -> None:
    trt, _ = fake_gpu(release)
    model, info = model_of("int8")
    score = runtime_outputs(model, IMAGES[:1], ["score"])[0]
    path = build_tiny(tmp_path / "a.plan", model, info, int8_only=True, implicit=implicit)
    build_tiny(tmp_path / "b.plan", model, info, implicit=implicit)
    alone, beside = (made.flags for made in trt._builds)
    assert "FP16" not in alone and beside == alone | {"FP16"}
    with engines.load(path) as engine:
        assert implicit or (engine.infer(IMAGES[:1]).score == score).all()


@pytest.mark.parametrize("implicit", [False, True])
def test_what_float16_cannot_hold_stays_in_float32_beside_int8(implicit: bool, fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu()
    model, info = model_of("int8")
    name = "/teacher/layer1/relu1/Relu_output_0"
    set_constant(model, f"{name}_scale", np.array(44_000 / 127, np.float32))
    _, built = build_plan(model, info, PlanSettings("uad export", 64, implicit=implicit))
    assert "FP16" not in built.flags
    assert any(text.startswith(f"what is not INT8 runs in float32: {name} reaches") for text in built.warnings)
    set_constant(model, f"{name}_scale", np.array(43_000 / 127, np.float32))
    assert "FP16" in build_plan(model, info, PlanSettings("uad export", 64, implicit=implicit))[1].flags


@every_release
def test_progress_is_told_where_tensorrt_tells_it(release: str, fake_gpu: FakeGpu) -> None:
    fake_gpu(release)
    told: list[Any] = []
    settings = PlanSettings("uad export", 64)
    build_plan(*model_of("fp32"), settings, lambda phase, done, steps: told.append((phase, done, steps)))
    expected = [("Building Engine", 0, 2), ("Building Engine", 1, 2), ("Building Engine", 2, 2)]
    assert told == (expected if release in TYPED else [])


def test_warnings_are_kept_in_a_program_that_wants_to_hear_none(fake_gpu: FakeGpu) -> None:
    fake_gpu()
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        assert build()[1].warnings == ["weights were cast from INT64 to INT32"]
    finally:
        root.setLevel(before)


def test_nothing_is_printed(fake_gpu: FakeGpu, capfd: pytest.CaptureFixture[str]) -> None:
    fake_gpu()
    build("int8")
    assert capfd.readouterr() == ("", "")


# The timing cache -----------------------------------------------------------------------------------------------------


@every_release
def test_timings_are_kept_for_the_next_build(release: str, fake_gpu: FakeGpu, tmp_path: Path) -> None:
    trt, _ = fake_gpu(release)
    build(), build()
    assert [made.cache for made in trt._builds] == [b"", b"timings"]
    (kept,) = (tmp_path / "cache" / "uad").glob("*.cache")
    assert kept.read_bytes() == b"timings" and trt.__version__ in kept.name and "Xavier" in kept.name


def test_a_damaged_timing_cache_is_replaced(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    trt, _ = fake_gpu()
    cache = tmp_path / "my.cache"
    cache.write_bytes(b"half a ca")
    build(timing_cache=cache)
    assert trt._builds[0].cache == b"" and cache.read_bytes() == b"timings"
    assert not (tmp_path / "cache").exists()


def test_a_timing_cache_that_cannot_be_kept_is_told_before_the_build(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    trt, _ = fake_gpu()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--timing-cache"):
        build(timing_cache=tmp_path / "file" / "my.cache")
    assert not trt._builds


def test_a_timing_cache_that_fails_in_the_end_does_not_cost_the_plan(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu()

    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    plan, built = build()
    assert plan and any("No space left on device" in warning for warning in built.warnings)


def test_the_default_timing_cache_is_that_of_a_release_and_a_gpu(fake_gpu: FakeGpu) -> None:
    from engines.tensorrt import Device

    names = {
        default_timing_cache(*each).name
        for each in (("8.5", Device("A/B c", "7.2", "11")), ("8.6", Device("A/B c", "7.2", "11")))
    }
    assert names == {"timing-8.5-A-B-c-7.2.cache", "timing-8.6-A-B-c-7.2.cache"}


# INT8 without Q/DQ, and the DLA ---------------------------------------------------------------------------------------


def int8_without_nodes(**settings: Any) -> tuple[bytes, PlanInfo]:
    return build("int8", implicit=True, **settings)


@pytest.mark.parametrize("release", HINTED)
@pytest.mark.parametrize("by_cache", [False, True], ids=["ranges", "cache"])
@pytest.mark.parametrize("backbone", ["inverted", "residual"])
def test_an_implicit_plan_judges_as_the_file_with_nodes(
    backbone: str, by_cache: bool, release: str, fake_gpu: FakeGpu, tmp_path: Path
) -> None:
    trt, _ = fake_gpu(release)
    floats = with_readout(backbone)
    quantized, info, _ = quantize(floats, tiny_info(outputs=list(OUTPUTS)), IMAGES, calibrator("minmax"))
    model = for_tensorrt(quantized)
    cache = tmp_path / "int8.cache" if by_cache else None
    path = build_tiny(tmp_path / "a.plan", model, info, implicit=True, calibration_cache=cache)
    (made,) = trt._builds
    assert not any(layer.type.name in ("QUANTIZE", "DEQUANTIZE") for layer in made.network._layers)
    assert {"INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"} <= made.flags
    _, ranges = without_qdq(model, info.residual_scales)
    assert made.ranges == pytest.approx(ranges, rel=1e-6)
    assert any(tensor._range for layer in made.network._layers for tensor in layer._outputs) != by_cache
    with engines.load(path) as engine:
        found = engine.infer(IMAGES[:1]).anomaly_map
    with_nodes, without = (runtime_outputs(each, IMAGES[:1], ["anomaly_map"])[0] for each in (model, floats))
    apart, int8_apart = np.abs(found - with_nodes).mean(), np.abs(without - with_nodes).mean()
    # The fake fuses both convolutions before an Add of a residual block, and so rounds one fewer than the file.
    assert apart < (1e-3 if backbone == "inverted" else 0.5) * int8_apart


def test_what_is_said_of_an_implicit_plan(fake_gpu: FakeGpu) -> None:
    fake_gpu()
    _, built = int8_without_nodes()
    assert built.ranges > 10 and built.float32_layers > 30 and built.dla_core is None and built.dla_layers == 0
    assert build("int8")[1].ranges == 0


@pytest.mark.parametrize("release", TYPED)
def test_newer_releases_refuse_implicit_int8_and_say_why(release: str, fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu(release)
    with pytest.raises(ExportError, match=f"--implicit is for TensorRT 8, this is {trt.__version__}: .* gone in 11"):
        int8_without_nodes()
    with pytest.raises(ExportError, match="calibrators are for TensorRT 8.*Give another --calibrator"):
        calibrate(*model_of("fp32"), IMAGES, PlanSettings("uad export", 64))


def test_a_tensor_that_the_network_lacks_is_named(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu()
    model, _ = model_of("fp32")
    monkeypatch.setattr("export.tensorrt.without_qdq", lambda model_, scales: (model, {"nobody": 1.0}))
    with pytest.raises(ExportError, match="no tensor nobody, so its range cannot be set"):
        int8_without_nodes()


@pytest.mark.parametrize("release", HINTED)
def test_a_dead_channel_does_not_end_int8_without_nodes(
    release: str, fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu(release)
    floats = with_readout()
    weight = np.copy(constants(floats)["teacher/layer1/conv1.weight"])
    weight[1] = 0
    set_constant(floats, "teacher/layer1/conv1.weight", weight)
    quantized, info, _ = quantize(floats, tiny_info(outputs=list(OUTPUTS)), IMAGES, calibrator("minmax"))
    model, settings = for_tensorrt(quantized), PlanSettings("uad export", 64, implicit=True)
    assert build_plan(model, info, settings)[1].ranges > 10
    assert build_plan(model, info, dataclasses.replace(settings, implicit=False))[1].ranges == 0  # Q/DQ has its scale
    assert len(calibrate(floats, info, list(IMAGES), PlanSettings("uad export", 64))) > 10
    for module in ("export.implicit", "export.tensorrt"):
        monkeypatch.setattr(f"{module}.without_dead_channels", lambda model_: model_)
    for refused in (
        lambda: build_plan(model, info, settings),
        lambda: calibrate(floats, info, list(IMAGES), PlanSettings("uad export", 64)),
    ):
        with pytest.raises(ExportError, match=r"conv1/Conv: quantizeBiasCommon: Assertion getter\(i\) != 0 failed"):
            refused()


@pytest.mark.parametrize("release", HINTED)
def test_tensorrts_own_calibrator_sees_every_image(release: str, fake_gpu: FakeGpu) -> None:
    _, gpu = fake_gpu(release)
    model, info = model_of("fp32")
    free = gpu.free
    found = calibrate(model, info, list(IMAGES), PlanSettings("uad export", 64, max_batch=4))
    names = place(model).ranged()
    histograms = collect_histograms(model, names, IMAGES)
    expected = {name: calibrator("minmax")(histograms[name]) for name in names}  # as the fake does it
    assert {name: found[name] for name in names} == pytest.approx(expected, rel=1e-5)
    assert gpu.free == free and not gpu.contexts


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_dla_runs_what_is_not_held_in_float32(precision: str, fake_gpu: FakeGpu, tmp_path: Path) -> None:
    trt, _ = fake_gpu()
    model, info = model_of(precision)
    settings: dict[str, Any] = dict(implicit=precision == "int8", dla_core=1, gpu_fallback=True)
    path = build_tiny(tmp_path / "a.plan", model, info, **settings)
    (made,) = trt._builds
    assert {"GPU_FALLBACK", "FP16", "OBEY_PRECISION_CONSTRAINTS"} <= made.flags
    assert {layer.name for layer in made.network._layers if layer.name.endswith("/Conv")} <= set(made.on_dla)
    assert not [name for name in made.on_dla if name.startswith(("/head/", "/normalize/"))]
    _, built = read_description(path)
    assert (built.dla_core, built.dla_layers) == (1, len(made.on_dla))
    with engines.load(path) as engine:
        np.testing.assert_allclose(
            engine.infer(IMAGES[:1]).score, runtime_outputs(model, IMAGES[:1], ["score"])[0], rtol=0.05
        )


def test_without_the_gpu_a_dla_refuses_what_it_cannot_run(fake_gpu: FakeGpu) -> None:
    fake_gpu()
    with pytest.raises(ExportError, match=r"dla:0: \d+ layers cannot run there \(/normalize/.*: add --gpu-fallback"):
        int8_without_nodes(dla_core=0)


def test_a_dla_that_is_not_there_is_named(fake_gpu: FakeGpu) -> None:
    fake_gpu()
    with pytest.raises(ExportError, match="--device dla:2: this machine has 2 DLA cores"):
        int8_without_nodes(dla_core=2, gpu_fallback=True)


def test_a_dla_takes_no_nodes(fake_gpu: FakeGpu) -> None:
    fake_gpu()
    with pytest.raises(ExportError, match="DLA does not support explicit quantization"):
        build("int8", dla_core=0, gpu_fallback=True)


# What TensorRT refuses ------------------------------------------------------------------------------------------------


@every_release
def test_an_operator_that_the_release_lacks_is_named_with_its_node(release: str, fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu(release)
    model, info = model_of("fp32")
    node_of(model, "/teacher/relu/Relu").op_type = "Mish"
    model.opset_import[0].version = 18
    with pytest.raises(ExportError, match=r"refuses the graph: /teacher/relu/Relu \(Mish\): No importer") as error:
        build_plan(model, info, PlanSettings("uad export", 64))
    assert "\n" not in str(error.value) and trt.__version__ in str(error.value)


@every_release
def test_a_scale_of_zero_is_named_with_its_node(release: str, fake_gpu: FakeGpu) -> None:
    fake_gpu(release)
    model, info = model_of("int8")
    set_constant(model, "/normalize/Div_output_0_scale", np.array(0.0, np.float32))
    with pytest.raises(ExportError, match=r"/normalize/Div_output_0/Q \(QuantizeLinear\): Scale coefficients must all"):
        build_plan(model, info, PlanSettings("uad export", 64))


@every_release
def test_integer_weights_are_taken_from_10_on(release: str, fake_gpu: FakeGpu) -> None:
    fake_gpu(release)
    model, info = model_of("int8")
    if release in TYPED:
        build_plan(for_cpu(model), info, PlanSettings("uad export", 64))
    else:
        with pytest.raises(ExportError, match="invalid weights type of Int8"):
            build_plan(for_cpu(model), info, PlanSettings("uad export", 64))


@every_release
def test_a_build_that_fails_says_what_tensorrt_said(release: str, fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu(release)
    trt._failure = "Could not find any implementation for node {ForeignNode[/head/Mul]}"
    with pytest.raises(ExportError, match=r"cannot build the plan: .*Could not find any implementation") as error:
        build()
    assert "--workspace-mb" not in str(error.value)


@pytest.mark.parametrize("said", ["Out of memory", "OutOfMemory (no further information)", "Insufficient memory"])
def test_out_of_memory_says_what_to_try(said: str, fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu()
    trt._failure = f"Error Code 2: {said}. Requested size was 123 bytes."
    with pytest.raises(ExportError, match=re.escape(said) + ".*Close other programs, and try --workspace-mb 16"):
        build()


@pytest.mark.parametrize("name", ["tensorrt", "pycuda.driver", "polygraphy.backend.trt"])
def test_what_is_missing_is_named(name: str, fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu()
    monkeypatch.setitem(sys.modules, name, None)
    if name == "pycuda.driver":
        monkeypatch.delattr(sys.modules["pycuda"], "driver")
    shown = {"tensorrt": "TensorRT", "pycuda.driver": "pycuda", "polygraphy.backend.trt": "Polygraphy"}[name]
    with pytest.raises(RuntimeNotInstalled, match=f"{shown} does not load"):
        build()


def test_a_release_that_is_too_old_is_named(fake_gpu: FakeGpu) -> None:
    trt, _ = fake_gpu("8.5.2")
    trt.__version__ = "8.4.1.5"
    with pytest.raises(RuntimeNotInstalled, match="TensorRT 8.4.1.5 is too old: 8.5 or newer"):
        build()


def test_without_a_gpu_nothing_is_built(fake_gpu: FakeGpu) -> None:
    gpu = Gpu()
    gpu.count = 0
    trt, _ = fake_gpu("8.5.2", gpu)
    with pytest.raises(UserError, match="no NVIDIA GPU can be used here"):
        build()
    assert not trt._builds


def test_the_graph_given_is_not_changed(fake_gpu: FakeGpu) -> None:
    fake_gpu()
    model, info = model_of("int8")
    before = model.SerializeToString(deterministic=True)
    build_plan(model, info, PlanSettings("uad export", 64, batch=3))
    assert model.SerializeToString(deterministic=True) == before


def test_the_tiny_model_without_a_readout_builds_too(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu()
    assert build_tiny(tmp_path / "a.plan", tiny("inverted")).is_file()
