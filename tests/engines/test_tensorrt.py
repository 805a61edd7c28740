"""engines.tensorrt: how plans are run, on fakes of TensorRT and pycuda that move real bytes; see `fakes.cuda`.

That results are right is in `test_engines`, over which TensorRT is a third runtime.
"""

from __future__ import annotations

import gc
import hashlib
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from fakes.cuda import Error, Gpu, LogicError
from fakes.tensorrt import RELEASES
from graphs import build_tiny, random_images, runtime_outputs, tiny, tiny_info

pytest.importorskip("polygraphy", reason="polygraphy is not installed")

import engines
from engines.errors import ModelFileError, RuntimeNotInstalled, UserError
from engines.plan_file import PlanInfo, read_description
from engines.tensorrt import device_here

FakeGpu = Callable[..., "tuple[Any, Gpu]"]
every_release = pytest.mark.parametrize("release", RELEASES)


@every_release
@pytest.mark.parametrize("settings", [{"batch": 3}, {"max_batch": 8}], ids=["static", "dynamic"])
def test_every_release_runs_static_and_dynamic_plans(
    release: str, settings: dict[str, int], fake_gpu: FakeGpu, tmp_path: Path
) -> None:
    fake_gpu(release)
    path = build_tiny(tmp_path / "a.plan", **settings)
    images = random_images(7)
    expected = runtime_outputs(tiny(), images, ["score", "anomaly_map"])
    with engines.load(path, batch=3) as engine:  # the last of three batches has one image
        assert (engine.runtime, engine.batch, engine.arithmetic) == ("tensorrt", 3, "f32")
        for _ in range(2):
            found = engine.infer(images)
            np.testing.assert_allclose(found.score, expected[0], rtol=1e-5)
            np.testing.assert_allclose(found.anomaly_map, expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("settings", "batch"), [({"batch": 3}, 3), ({"max_batch": 8}, 1), ({}, 1)])
def test_without_a_batch_a_plan_takes_what_it_was_built_for(
    settings: dict[str, int], batch: int, fake_gpu: FakeGpu, tmp_path: Path
) -> None:
    fake_gpu()
    with engines.load(build_tiny(tmp_path / "a.plan", **settings)) as engine:
        assert engine.batch == batch
        assert engine.infer(random_images(4)).score.shape == (4,)


@pytest.mark.parametrize(
    ("settings", "batch", "said"),
    [
        ({"batch": 4}, 1, "takes 4 images at once, not 1: give --batch 4"),
        ({"max_batch": 8}, 16, "takes 1 to 8 images at once, not 16: give --batch 8"),
    ],
)
def test_a_batch_that_the_plan_does_not_take(
    settings: dict[str, int], batch: int, said: str, fake_gpu: FakeGpu, tmp_path: Path
) -> None:
    fake_gpu()
    with pytest.raises(ModelFileError, match=f"a.plan {said}"):
        engines.load(build_tiny(tmp_path / "a.plan", **settings), batch=batch)


def test_memory_is_allocated_once_and_given_back(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    path = build_tiny(tmp_path / "a.plan", batch=2)
    before = gpu.free
    engine = engines.load(path)
    sizes = sorted(len(memory) for memory in gpu.allocations.values())
    assert sizes == [2 * 4, 2 * 4 * 4 * 4, 2 * 16 * 16 * 3]
    assert engine.device_mem_mb == pytest.approx(3.0 + sum(sizes) / 1e6)
    engine.infer(random_images(6))
    assert len(gpu.allocations) == 3 and len(gpu.page_locked) == 3
    engine.close()
    assert not gpu.allocations and gpu.free == before and not gpu.contexts


def test_parts_of_a_run_are_timed_by_the_gpu(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    # The fake's clock goes by 1 ms for each copy and each execution.
    fake_gpu()
    with engines.load(build_tiny(tmp_path / "a.plan")) as engine:
        engine.run(random_images(1))
        assert engine.parts_ms() == {"copy_in": 1.0, "compute": 1.0, "copy_out": 2.0}


def test_each_run_waits_for_the_gpu_once(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    with engines.load(build_tiny(tmp_path / "a.plan")) as engine:
        before = gpu.synchronised
        engine.infer(random_images(3))
        assert gpu.synchronised - before == 3


def test_a_context_of_the_callers_is_left_alone(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    other = gpu.driver.Context()
    other.push()
    engine = engines.load(build_tiny(tmp_path / "a.plan"))
    engine.infer(random_images(1))
    assert gpu.contexts == [other]
    gpu.driver.Context.pop()
    engine.infer(random_images(1))  # ours does not need the caller's
    other.push()
    engine.close()
    assert gpu.contexts == [other]


def test_two_engines_may_be_closed_in_any_order(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    path = build_tiny(tmp_path / "a.plan")
    one, other = engines.load(path), engines.load(path)
    one.close()
    assert other.infer(random_images(1)).score.shape == (1,)
    other.close()
    one.close(), other.close()
    assert not gpu.allocations


def test_close_is_safe_after_the_context_is_gone(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    engine = engines.load(build_tiny(tmp_path / "a.plan"))
    gpu.primary.is_alive = False
    engine.close()
    engine.close()
    del engine
    gc.collect()


def test_a_plan_of_another_release_says_what_rebuilds_it(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu("8.5.2")
    path = build_tiny(tmp_path / "a.plan")
    fake_gpu("10.3.0")
    with pytest.raises(ModelFileError) as error:
        engines.load(path)
    said = str(error.value)
    assert "built by TensorRT 8.5.2.2 on Xavier (7.2), here is TensorRT 10.3.0.26 on Xavier (7.2)" in said
    assert "build it here with uad export a.onnx --out a.plan" in said


@pytest.mark.parametrize("gpu", [Gpu("Orin", (8, 7)), Gpu("Xavier", (8, 7)), Gpu("Orin", (7, 2))])
def test_a_plan_of_another_gpu_says_what_rebuilds_it(gpu: Gpu, fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu()
    path = build_tiny(tmp_path / "a.plan")
    fake_gpu("8.5.2", gpu)
    with pytest.raises(ModelFileError, match="on Xavier \\(7.2\\), here is .* build it here with uad export a.onnx"):
        engines.load(path)


def test_a_damaged_plan_is_refused_before_tensorrt_sees_it(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu()
    path = build_tiny(tmp_path / "a.plan")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelFileError, match="is not the plan that a.plan.json describes, or is damaged"):
        engines.load(path)


def test_a_plan_that_tensorrt_refuses_says_why(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu()
    path = build_tiny(tmp_path / "a.plan")
    content = path.read_bytes()[:-10]
    path.write_bytes(content)
    beside = tmp_path / "a.plan.json"
    described = json.loads(beside.read_text())
    described["plan"]["sha256"] = hashlib.sha256(content).hexdigest()
    beside.write_text(json.dumps(described))
    with pytest.raises(ModelFileError, match="TensorRT cannot load it .*safeSizeRead failed.*: build it again with"):
        engines.load(path)


def test_a_plan_with_other_tensors_is_not_ours(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    model = tiny()
    model.graph.output[0].name = model.graph.node[-1].output[0]
    model.graph.output[1].name = "score"
    model.graph.node[-1].output[0] = model.graph.output[0].name = "other"
    with pytest.raises(ModelFileError, match="a.plan is not a plan of uad: its inputs and outputs are image, "):
        engines.load(build_tiny(tmp_path / "a.plan", model))
    assert not gpu.allocations and not gpu.contexts


def test_out_of_memory_is_one_line_and_leaves_nothing(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    _, gpu = fake_gpu()
    path = build_tiny(tmp_path / "a.plan")
    gpu.free = 800  # the image fits, the map does not
    with pytest.raises(UserError, match="the GPU is out of memory .*: close what else uses it"):
        engines.load(path)
    assert not gpu.allocations and gpu.free == 800 and not gpu.contexts


def test_a_run_that_fails_is_one_line(fake_gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt, _ = fake_gpu()
    with engines.load(build_tiny(tmp_path / "a.plan")) as engine:
        monkeypatch.setattr(trt.IExecutionContext, "execute_async_v3", lambda self, stream_handle: False)
        with pytest.raises(UserError, match="TensorRT cannot run the plan"):
            engine.run(random_images(1))


def test_a_gpu_that_fails_is_one_line(fake_gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gpu = fake_gpu()

    def fail(address: int) -> None:
        raise LogicError("an illegal memory access was encountered")

    with engines.load(build_tiny(tmp_path / "a.plan")) as engine:
        monkeypatch.setattr(gpu, "memory", fail)
        with pytest.raises(UserError, match="the GPU failed while it ran the plan .*illegal memory access"):
            engine.run(random_images(1))
        assert not gpu.contexts


def test_a_gpu_that_cannot_be_used_is_one_line(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gpu = fake_gpu()

    def fail() -> None:
        raise Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(gpu.driver, "init", fail)
    with pytest.raises(UserError, match="no NVIDIA GPU can be used here .*no CUDA-capable device"):
        device_here()


def test_pycuda_that_does_not_load_is_named(fake_gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gpu = fake_gpu()
    path = build_tiny(tmp_path / "a.plan")
    monkeypatch.setitem(__import__("sys").modules, "pycuda.driver", None)
    monkeypatch.delattr(gpu.package, "driver")
    with pytest.raises(RuntimeNotInstalled, match="pycuda does not load .*: uad doctor says what to install"):
        engines.load(path)


# The fake is honest ---------------------------------------------------------------------------------------------------


def test_the_fake_does_nothing_before_the_stream_is_synchronised(fake_gpu: FakeGpu) -> None:
    _, gpu = fake_gpu()
    cuda = gpu.driver
    gpu.primary.push()
    host, stream = cuda.pagelocked_empty((4,), np.uint8), cuda.Stream()
    memory = cuda.mem_alloc(4)
    host[:] = 7
    cuda.memcpy_htod_async(memory, host, stream)
    assert (gpu.memory(int(memory)) != 7).any()
    stream.synchronize()
    assert (gpu.memory(int(memory)) == 7).all()
    memory.free()
    with pytest.raises(LogicError):
        int(memory)


def test_the_description_says_what_built_a_plan(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu()
    path = build_tiny(tmp_path / "a.plan", max_batch=4)
    info, plan = read_description(path)
    assert info == tiny_info()
    assert plan == PlanInfo(
        tensorrt="8.5.2.2",
        cuda="11.4",
        device="Xavier",
        compute_capability="7.2",
        flags=["OBEY_PRECISION_CONSTRAINTS"],
        float32_layers=plan.float32_layers,
        batch={"min": 1, "opt": 4, "max": 4},
        workspace_mb=64,
        warnings=["weights were cast from INT64 to INT32"],
        command="uad export a.onnx --out a.plan",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    assert plan.float32_layers > 20
