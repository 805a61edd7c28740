"""Where Q/DQ goes: the one set of rules for post-training quantization and quantization-aware training.

The rules are NVIDIA's for explicit quantization (TensorRT Developer Guide, 'Working with Quantized Types'), and were
measured to be the fastest on OpenVINO too:

1. the data input of every convolution (Conv, ConvTranspose) of the backbone, one scale a tensor;
2. its weights, one scale for each output channel of a Conv, one for all of a ConvTranspose; its bias stays in float.
   Releases of TensorRT disagree about the axis of a ConvTranspose: below 9.3 the kernels assume axis 0, from there on
   axis 1 (NVIDIA/TensorRT#2380, #1694, #1519). One scale means the same to each;
3. the skip branch of a residual Add, so that the Add fuses with the convolution on the other branch. Nothing between
   that convolution and its Add or activation (NVIDIA/TensorRT#1992, #4412);
4. the input of a MaxPool, if only quantized nodes read its output. It takes the scale of that output. Pooling then
   runs in INT8 and changes no value: the maximum of rounded numbers is the rounded maximum. If a float convolution or
   Add reads the output too, the pool stays in float, because that reader wants values that are not rounded;
5. the input of an AveragePool, likewise, but with its own scale, which the output takes. TensorRT's INT8 kernel wants
   one scale for both. This rounds once more. Without it the convolution in front writes float32, which is 86% of the
   bytes that EfficientAD moves. The scale of the output would clip what is averaged, which costs more.

Where a convolution is kept in float on request, rules 1 and 2 pass it over, and so does rule 3 the Add it fuses with.

What always stays in float: the input normalisation and the distance head, whose squared feature norms and small
differences INT8 cannot hold; the head reads the features before they are quantized.
"""

from dataclasses import dataclass
from typing import Collection, Dict, List, Optional, Set

import onnx

from engines.graph import CONVOLUTIONS, attribute, backbone_convolutions, constants, consumers, in_backbone, producers

POOLS = ("MaxPool", "AveragePool")


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor that gets one Q/DQ pair, and who reads it after that pair."""

    name: str
    readers: List[str]  # node names
    range_of: str  # the tensor whose range gives the scale; mostly `name` itself


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight that gets one scale for each output channel along `axis`, or one for all of it."""

    name: str
    node: str
    axis: Optional[int]  # of the output channels; None: one scale


@dataclass(frozen=True)
class Placement:
    """Where a graph gets Q/DQ; computed once for a graph and the layers it keeps in float, then passed on."""

    activations: List[QuantizedTensor]  # rules 1, 3, 4 and 5, in graph order
    weights: List[QuantizedWeight]  # rule 2, in graph order; a weight that several convolutions share comes once
    # Outputs of convolutions that a residual Add reads in float, where the sum is quantized later. Only ONNX Runtime,
    # which cannot fuse the two, quantizes them (engines/unsigned.py). A sum that only the head reads is left alone.
    residuals: List[str]
    layers: List[str]  # names of the convolution nodes that are quantized, in graph order

    def ranged(self) -> List[str]:
        """The tensors whose range must be known."""
        return sorted({tensor.range_of for tensor in self.activations}.union(self.residuals))


def place(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> Placement:
    """Apply the rules to a float32 graph.

    Args:
        model: the graph.
        keep_float: names of convolution nodes that are not to be quantized.
    """
    weights = _weights(model, keep_float)
    names = {weight.name for weight in weights}
    activations = _activations(model, names, keep_float)
    residuals = _unfused_residuals(model, {tensor.name for tensor in activations}, keep_float)
    layers = [
        node.name for node in backbone_convolutions(model) if node.input[1] in names and node.name not in keep_float
    ]
    return Placement(activations, weights, residuals, layers)


def _activations(
    model: onnx.ModelProto, quantized: Collection[str], keep_float: Collection[str]
) -> List[QuantizedTensor]:
    """Rules 1, 3, 4 and 5; `quantized` are the names of the weights of rule 2."""
    made_by = producers(model)
    read_by = consumers(model)
    fixed = constants(model)
    readers: Dict[str, List[str]] = {}
    for node in model.graph.node:
        if not in_backbone(node):
            continue
        if node.op_type in CONVOLUTIONS:
            if node.input[1] not in quantized or node.name in keep_float:
                continue  # left in float: TensorRT refuses a convolution of which one side is quantized
            readers.setdefault(node.input[0], []).append(node.name)
        elif node.op_type == "Add" and not any(name in fixed for name in node.input):
            skip = skip_branch(node, made_by, read_by)
            fused = next((made_by[name] for name in node.input if name != skip and name in made_by), None)
            if fused is None or fused.name not in keep_float:
                readers.setdefault(skip, []).append(node.name)
    placed: List[QuantizedTensor] = []
    for name, nodes in readers.items():
        source, range_of = made_by.get(name), name
        if source is not None and source.op_type in POOLS and _may_be_quantized(read_by[name], nodes):
            pooled = source.input[0]
            range_of = name if source.op_type == "MaxPool" else pooled
            earlier = next((tensor.readers for tensor in placed if tensor.name == pooled), None)
            shared = readers.get(pooled, earlier)
            if shared is not None:
                shared.append(source.name)
            else:
                placed.append(QuantizedTensor(pooled, [source.name], range_of=range_of))
        placed.append(QuantizedTensor(name, nodes, range_of=range_of))
    return placed


def _unfused_residuals(model: onnx.ModelProto, skips: Set[str], keep_float: Collection[str]) -> List[str]:
    """See `Placement.residuals`; `skips` are the tensors that get Q/DQ."""
    made_by = producers(model)
    read_by = consumers(model)
    names = []
    for node in model.graph.node:
        if node.op_type == "Add" and in_backbone(node) and _is_quantized_later(node, read_by, skips):
            for name in node.input:
                source = made_by.get(name)
                if source is None or source.op_type not in CONVOLUTIONS or source.name in keep_float:
                    continue
                if name not in skips:
                    names.append(name)
    return names


def _weights(model: onnx.ModelProto, keep_float: Collection[str]) -> List[QuantizedWeight]:
    """Rule 2."""
    fixed = constants(model)
    placed: Dict[str, QuantizedWeight] = {}
    for node in backbone_convolutions(model):
        if node.name not in keep_float and node.input[1] in fixed:
            grouped = (attribute(node, "group") or 1) != 1
            if node.op_type == "ConvTranspose" and grouped:
                continue  # whether TensorRT has INT8 kernels for it is not known: left in float
            axis = 0 if node.op_type == "Conv" else None
            placed.setdefault(node.input[1], QuantizedWeight(node.input[1], node.name, axis))
    return list(placed.values())


def _may_be_quantized(readers: List[onnx.NodeProto], quantized: Collection[str]) -> bool:
    """Whether nobody who reads a tensor wants it in float: `quantized` are the names of those who read its Q/DQ."""
    return all(
        in_backbone(reader) and (reader.op_type not in (*CONVOLUTIONS, "Add") or reader.name in quantized)
        for reader in readers
    )


def _is_quantized_later(node: onnx.NodeProto, read_by: Dict[str, List[onnx.NodeProto]], quantized: Set[str]) -> bool:
    """Whether a node's output, as it is or after its activation, gets a Q/DQ pair."""
    name = node.output[0]
    activated = [reader.output[0] for reader in read_by.get(name, []) if reader.op_type in ("Relu", "Clip")]
    return name in quantized or any(output in quantized for output in activated)


def skip_branch(
    add: onnx.NodeProto, made_by: Dict[str, onnx.NodeProto], read_by: Dict[str, List[onnx.NodeProto]]
) -> str:
    """The input of a residual Add that is not the convolution it fuses with.

    Where both come from convolutions, the skip branch is the block's input, which others read too (a linear
    bottleneck), or else the one whose convolution reads the block's input (a downsampling 1x1 convolution).
    """
    from_convolution: List[str] = [
        name for name in add.input if name in made_by and made_by[name].op_type in CONVOLUTIONS
    ]
    if len(from_convolution) == 1:
        return str(next(name for name in add.input if name != from_convolution[0]))
    for name in from_convolution:
        if len(read_by[name]) > 1:
            return name
    for name in from_convolution:
        if len(read_by[made_by[name].input[0]]) > 1:
            return name
    return str(add.input[1])
