"""Tiny ONNX graphs of the project's contract, with the node names that torch's exporter gives.

`image` uint8 (N, H, W, 3) -> /normalize/... -> /teacher/... and /student/... -> /head/... -> `score` (N,),
`anomaly_map` (N, h, w), and with a read-out `class_index` and `class_distance` (N,). Two backbones stand for the real
ones: `residual` for ResNet (max pooling, an identity block, a downsampling block) and `inverted` for MobileNetV2 (Clip,
depthwise convolutions, linear bottlenecks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from image_folders import held_out_digests
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from engines.graph import constants
from engines.metadata import ModelInfo
from engines.model_file import save_model
from engines.qdq import for_tensorrt
from export.calibrate import Calibrator
from export.placement import place
from export.quantize import QuantizationReport, collect_histograms, with_ranges
from export.readout import see

SIZE = 16
MEAN = 255.0 * np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
STD = 255.0 * np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
TOP = 3  # pixels of the map whose mean is the score


class Builder:
    """A graph under construction; each method appends nodes and returns the tensor that they compute."""

    def __init__(self, seed: int = 0, size: int = SIZE) -> None:
        self.size = size
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.channels: dict[str, int] = {}

    def constant(self, name: str, value: Any) -> str:
        """An initializer."""
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: list[str], place: str, output: str | None = None, **attributes: Any) -> str:
        """A node named /place/op, whose output keeps the channels of its first input."""
        name = f"/{place}/{op}"
        output = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        self.channels[output] = self.channels.get(inputs[0], 0)
        return output

    def normalize(self) -> str:
        """The input normalisation, as torch writes it."""
        x = self.node("Cast", ["image"], "normalize", to=TensorProto.FLOAT)
        x = self.node("Transpose", [x], "normalize", perm=[0, 3, 1, 2])
        x = self.node("Sub", [x, self.constant("normalize.mean", MEAN)], "normalize")
        x = self.node("Div", [x, self.constant("normalize.std", STD)], "normalize")
        self.channels[x] = 3
        return x

    def conv(self, x: str, place: str, channels: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        """A convolution that keeps the size (for stride 1) and, by and large, the variance."""
        fan_in = self.channels[x] // group
        weight = self.random.standard_normal((channels, fan_in, kernel, kernel)) * np.sqrt(2 / (fan_in * kernel**2))
        bias = self.random.standard_normal(channels) * 0.1
        inputs = [
            x,
            self.constant(f"{place}.weight", weight.astype(np.float32)),
            self.constant(f"{place}.bias", bias.astype(np.float32)),
        ]
        y = self.node(
            "Conv",
            inputs,
            place,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=group,
        )
        self.channels[y] = channels
        return y

    def relu(self, x: str, place: str) -> str:
        """max(x, 0)."""
        return self.node("Relu", [x], place)

    def clip(self, x: str, place: str, low: float = 0.0, high: float = 6.0) -> str:
        """ReLU6 by default."""
        bounds = [self.constant(f"{place}.min", np.float32(low)), self.constant(f"{place}.max", np.float32(high))]
        return self.node("Clip", [x, *bounds], place)

    def max_pool(self, x: str, place: str) -> str:
        """3x3, stride 2."""
        return self.node("MaxPool", [x], place, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def add(self, x: str, y: str, place: str) -> str:
        """A residual Add; torch writes `x + f(x)` and `out += identity` in either order."""
        return self.node("Add", [x, y], place)

    def distance(self, teacher: str, student: str, place: str) -> str:
        """Half the squared distance of the unit feature vectors: (N, C, h, w) twice -> (N, 1, h, w)."""
        units = [self._unit(teacher, f"{place}/teacher"), self._unit(student, f"{place}/student")]
        difference = self.node("Sub", units, place)
        square = self.node("Mul", [difference, difference], place)
        total = self.node("ReduceSum", [square, self._axes("head.channels", 1)], place, keepdims=1)
        return self.node("Mul", [total, self.constant("head.half", np.float32(0.5))], f"{place}/half")

    def upsample(self, x: str, place: str, factor: int = 2, mode: str = "linear") -> str:
        """Resize by a constant factor."""
        scales = self.constant(f"{place}.scales", np.array([1, 1, factor, factor], np.float32))
        return self.node("Resize", [x, "", scales], place, mode=mode, coordinate_transformation_mode="half_pixel")

    def tell_class(self, nearest: str, distances: str) -> list[onnx.ValueInfoProto]:
        """The outputs `class_index`, and `class_distance` as of a bank: see `uad.models.bank.middle_distance`."""
        self.node("Cast", [nearest], "head/class", output="class_index", to=TensorProto.INT32)
        flat = self.node("Flatten", [distances], "head/class", axis=1)
        k = self.constant("head.class.k", np.array([(self.size // 8) ** 2 // 2]))
        names = [f"/head/class/TopK_output_{index}" for index in range(2)]
        self.nodes.append(helper.make_node("TopK", [flat, k], names, name="/head/class/TopK", axis=1, largest=0))
        middle = self.node("ReduceMax", names[:1], "head/class", axes=[1], keepdims=0)
        farthest = self.constant("head.bank.farthest", np.array([0.5, 0.8], np.float32))
        of_class = self.node("Gather", [farthest, nearest], "head/class", axis=0)
        root = self.node("Sqrt", [middle], "head/class")
        self.node("Div", [root, of_class], "head/class", output="class_distance")
        return [
            helper.make_tensor_value_info("class_index", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("class_distance", TensorProto.FLOAT, ["batch"]),
        ]

    def finish(self, pixels: str, more: Sequence[onnx.ValueInfoProto] = ()) -> onnx.ModelProto:
        """Score and map from a distance map (N, 1, h, w); then the whole graph, with more outputs behind these."""
        flat = self.node("Flatten", [pixels], "head", axis=1)
        top = helper.make_node(
            "TopK",
            [flat, self.constant("head.k", np.array([TOP]))],
            ["/head/TopK_output_0", "/head/TopK_output_1"],
            name="/head/TopK",
            axis=1,
        )
        self.nodes.append(top)
        self.node("ReduceMean", [top.output[0]], "head", output="score", axes=[1], keepdims=0)
        self.node("Squeeze", [pixels, self._axes("head.squeezed", 1)], "head", output="anomaly_map")
        return self.model(
            [
                helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
                helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", "height", "width"]),
                *more,
            ]
        )

    def tap(self, *tensors: str) -> onnx.ModelProto:
        """A graph that ends here: the head hands out each tensor (N, C, h, w) as feature0, feature1, ..."""
        outputs = []
        for index, tensor in enumerate(tensors):
            self.node("Identity", [tensor], f"head/tap{index}", output=f"feature{index}")
            shape = ["batch", *(f"feature{index}_{axis}" for axis in "chw")]
            outputs.append(helper.make_tensor_value_info(f"feature{index}", TensorProto.FLOAT, shape))
        return self.model(outputs)

    def model(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The graph so far, checked."""
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", self.size, self.size, 3])],
            outputs,
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _unit(self, x: str, place: str) -> str:
        square = self.node("Mul", [x, x], place)
        total = self.node("ReduceSum", [square, self._axes("head.channels", 1)], place, keepdims=1)
        floored = self.node("Add", [total, self.constant("head.epsilon", np.float32(1e-12))], place)
        return self.node("Div", [x, self.node("Sqrt", [floored], place)], place)

    def _axes(self, name: str, axis: int) -> str:
        return self.constant(name, np.array([axis]))


def residual_features(b: Builder, x: str, net: str) -> list[str]:
    """A small ResNet: features at 1/4 and 1/8 of the input."""
    x = b.relu(b.conv(x, f"{net}/conv1", 4, stride=2), f"{net}/relu")
    x = b.max_pool(x, f"{net}/maxpool")
    y = b.relu(b.conv(x, f"{net}/layer1/conv1", 4), f"{net}/layer1/relu1")
    y = b.conv(y, f"{net}/layer1/conv2", 4)
    fine = b.relu(b.add(y, x, f"{net}/layer1"), f"{net}/layer1/relu2")
    y = b.relu(b.conv(fine, f"{net}/layer2/conv1", 6, stride=2), f"{net}/layer2/relu1")
    y = b.conv(y, f"{net}/layer2/conv2", 6)
    skip = b.conv(fine, f"{net}/layer2/downsample", 6, kernel=1, stride=2)
    coarse = b.relu(b.add(y, skip, f"{net}/layer2"), f"{net}/layer2/relu2")
    return [fine, coarse]


def inverted_features(b: Builder, x: str, net: str) -> list[str]:
    """A small MobileNetV2: features at 1/4 of the input, and one more convolution, and features at 1/8."""
    x = b.clip(b.conv(x, f"{net}/stem", 4, stride=2), f"{net}/stem/clip")
    x = inverted_block(b, x, f"{net}/block1", 4, stride=2)  # no skip: another size
    y = inverted_block(b, x, f"{net}/block2", 4)
    fine = b.add(x, y, f"{net}/block2")  # x is a linear bottleneck, that is, it comes straight from a convolution
    y = inverted_block(b, fine, f"{net}/block3", 4)
    again = b.add(fine, y, f"{net}/block3")  # fine is a sum itself
    return [fine, inverted_block(b, again, f"{net}/block4", 6, stride=2)]


def inverted_block(b: Builder, x: str, place: str, channels: int, stride: int = 1) -> str:
    """Expand, depthwise, project; the projection is linear."""
    x = b.clip(b.conv(x, f"{place}/expand", 8, kernel=1), f"{place}/clip1")
    x = b.clip(b.conv(x, f"{place}/depthwise", 8, stride=stride, group=8), f"{place}/clip2")
    return b.conv(x, f"{place}/project", channels, kernel=1)


FEATURES = {"residual": residual_features, "inverted": inverted_features}


def tiny(backbone: str = "residual", size: int = SIZE, seed: int = 0) -> onnx.ModelProto:
    """A whole float32 model: a teacher and a student of one backbone, and the distance head."""
    b = Builder(seed, size)
    x = b.normalize()
    teacher, student = (FEATURES[backbone](b, x, net) for net in ("teacher", "student"))
    fine = b.distance(teacher[0], student[0], "head/fine")
    coarse = b.upsample(b.distance(teacher[1], student[1], "head/coarse"), "head/up")
    return b.finish(b.node("Mul", [fine, coarse], "head"))


def with_readout(backbone: str = "residual", size: int = SIZE, seed: int = 0) -> onnx.ModelProto:
    """A whole float32 model whose head has a regional read-out of two classes, and tells the class of an image.

    See `uad.models.readout`.
    """
    b = Builder(seed, size)
    x = b.normalize()
    teacher, student = (FEATURES[backbone](b, x, net) for net in ("teacher", "student"))
    maps = [b.distance(t, s, f"head/{name}") for t, s, name in zip(teacher, student, ("fine", "coarse"))]
    pooled = b.node("ReduceMean", [teacher[1]], "head/pooled", axes=[2, 3], keepdims=0)
    place = b.node("Div", [pooled, b.constant("head.readout.spread", np.full(6, 0.5, np.float32))], "head/readout")
    place = b.node("Unsqueeze", [place, b._axes("head.readout.axes", 1)], "head/readout")
    centroids = b.random.standard_normal((2, 6)).astype(np.float32)
    away = b.node("Sub", [place, b.constant("head.readout.centroids", centroids)], "head/readout")
    square = b.node("Mul", [away, away], "head/readout")
    total = b.node("ReduceSum", [square, b._axes("head.readout.last", 2)], "head/readout", keepdims=0)
    nearest = b.node("ArgMin", [total], "head/readout", axis=1, keepdims=0)
    excesses = []
    for level, distance in enumerate(maps):
        where = f"head/readout/levels.{level}"
        found = []
        for kind, value in (("mean", 0.2), ("std", 0.1)):
            values = value * b.random.uniform(0.5, 1.5, (2, 1, size // 8, size // 8)).astype(np.float32)
            statistic = b.constant(f"head.readout.levels.{level}.{kind}", values)
            gathered = b.node("Gather", [statistic, nearest], f"{where}/{kind}", axis=0)
            found.append(b.upsample(gathered, f"{where}/{kind}") if level == 0 else gathered)
        excess = b.node("Div", [b.node("Sub", [distance, found[0]], where), found[1]], where)
        excess = excess if level == 0 else b.upsample(excess, where)
        excess = b.node("Clip", [excess, b.constant(f"{where}.min", np.float32(0.0))], where)
        excesses.append(b.node("Mul", [excess, excess], where))
    return b.finish(b.node("Add", excesses, "head/readout"), b.tell_class(nearest, maps[1]))


def dark_and_bright() -> tuple[onnx.ModelProto, np.ndarray]:
    """A model of two classes, bolts that are dark and nuts that are bright, and five images (16, 16, 3), in turn."""
    model, images = with_readout(), random_images(5)
    images[::2] //= 8
    pooled = see(model, images[:2], [0, 1]).pooled
    set_constant(model, "head.readout.centroids", pooled / constants(model)["head.readout.spread"])
    return model, images


def tiny_info(size: int = SIZE, **changes: Any) -> ModelInfo:
    """The description of a tiny model."""
    info = ModelInfo(
        model="stfpm",
        backbone="tiny",
        classes=["bolt", "nut"],
        thresholds={"bolt": 0.25, "nut": 0.5},
        threshold=0.4,
        false_positive_rate=0.05,
        held_out={name: held_out_digests(name, 24, 0.1, 0) for name in ("bolt", "nut")},
        height=size,
        width=size,
        resize="bilinear",
        map_stride=4,
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    return dataclasses.replace(info, **changes)


def not_finite_for_grey() -> onnx.ModelProto:
    """A graph of finite constants whose score is not: 1 / (brightness - 127), for an image that is 127 everywhere."""
    b = Builder()
    x = b.normalize()
    mean = b.node("ReduceMean", ["/normalize/Transpose_output_0"], "head/mean", axes=[1, 2, 3], keepdims=1)
    off = b.node("Sub", [mean, b.constant("head.grey", np.float32(127.0))], "head")
    channels = b.node("ReduceMean", [x], "head/map", axes=[1], keepdims=1)
    pixels = b.node("MaxPool", [channels], "head", kernel_shape=[4, 4], strides=[4, 4])
    return b.finish(b.node("Div", [pixels, off], "head"))


def save_tiny(path: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """Write a tiny model with its description; returns the path."""
    model = tiny() if model is None else model
    shape = model.graph.input[0].type.tensor_type.shape
    save_model(model, tiny_info(shape.dim[1].dim_value, **changes), path)
    return path


def build_tiny(
    path: Path, model: onnx.ModelProto | None = None, info: ModelInfo | None = None, **settings: Any
) -> Path:
    """Build a plan of a tiny model with the TensorRT that seems to be here; returns the path."""
    from engines.plan_file import save_plan
    from export.tensorrt import PlanSettings, build_plan

    model = tiny() if model is None else model
    info = info or tiny_info(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    command = f"uad export a.onnx --out {path.name}"
    plan, built = build_plan(for_tensorrt(model), info, PlanSettings(command, 64, **settings))
    save_plan(plan, info, built, path)
    return path


def quantize(
    model: onnx.ModelProto,
    info: ModelInfo,
    images: Iterable[np.ndarray],
    calibrator: Calibrator,
    keep_float: Collection[str] = (),
) -> tuple[onnx.ModelProto, ModelInfo, QuantizationReport]:
    """The INT8 graph with ranges from images, its description, and what was done."""
    histograms = collect_histograms(model, place(model).ranged(), images)
    amax = {name: calibrator(histogram) for name, histogram in histograms.items()}
    return with_ranges(model, info, amax, place(model, keep_float))


def random_images(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of a graph that hands out these tensors."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    observed.graph.output.extend(
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in names
    )
    return observed


def reference_outputs(model: onnx.ModelProto, images: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Named tensors of a graph, computed by ONNX's own reference implementation.

    That knows QuantizeLinear from opset 19 on, which means the same as opset 17 for INT8.
    """
    evaluator = ReferenceEvaluator(with_outputs(version_converter.convert_version(model, 19), names))
    outputs: list[np.ndarray] = evaluator.run(names, {"image": images})
    return outputs


def runtime_outputs(model: onnx.ModelProto, images: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Named tensors of a graph, computed by ONNX Runtime, each node as it stands: nothing is fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    serialized = with_outputs(model, names).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, ["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(names, {"image": images})
    return outputs


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    return next(node for node in model.graph.node if node.name == name)


def set_constant(model: onnx.ModelProto, name: str, value: Any) -> None:
    """Give an initializer another value, or add it."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.asarray(value), name)])


def with_blind_weights(model: onnx.ModelProto, place: str, outlier: float = 400.0) -> onnx.ModelProto:
    """Give a convolution weights that ruin its INT8 scales and change no float value, behind a ReLU or a Clip at 0.

    The first channel of its input is made 0 for every image, and the weights that read it are outliers.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = node_of(model, f"/{place}/Conv")
    before = made_by[made_by[node.input[0]].input[0]]  # the convolution before the activation
    bias, weight = values[before.input[2]].copy(), values[node.input[1]].copy()
    bias[0] = -1e4
    weight[:, 0] = outlier
    set_constant(model, before.input[2], bias)
    set_constant(model, node.input[1], weight)
    return model
