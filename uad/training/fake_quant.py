"""Fake quantizers in a trained network, where its exported file has Q/DQ.

The network is folded first (`uad.training.fold`). Its float ONNX graph says which tensors are quantized. So there is
one set of rules, and a range bears the name of its tensor in the exported file.

NVIDIA no longer develops pytorch-quantization (2.1.3): nothing outside this file knows of it.
"""

import warnings
from typing import Collection, Dict, Optional

import torch
import torch.nn.functional as F
from absl import logging
from torch import Tensor, nn

from engines.metadata import ModelInfo
from export.onnx import export_network
from export.pixels import PIXELS, grid_of, on_pixels
from export.placement import place
from uad.training.checkpoint import Quantization
from uad.training.fold import Add

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit
    from pytorch_quantization.nn import QuantConv2d, QuantConvTranspose2d, TensorQuantizer
    from pytorch_quantization.tensor_quant import QuantDescriptor

logging.set_verbosity(logging.ERROR)  # it remarks on everything it does


class QuantAdd(Add):
    """A residual add that quantizes one of its operands, the skip branch."""

    def __init__(self, quantizer: nn.Module, skip: int) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.skip = skip

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum, with one operand on the INT8 grid."""
        if self.skip == 0:
            return super().forward(self.quantizer(left), right)
        return super().forward(left, self.quantizer(right))


class PixelConv2d(QuantConv2d):  # type: ignore[misc]  # a module without types
    """A first convolution that reads pixels as INT8 has them: see `export.pixels`. Its parameters stay the same."""

    def on_grid_of(self, info: ModelInfo) -> None:
        """Know the grid of the pixels."""
        for name, value in zip(("std", "offset"), grid_of(info)):
            self.register_buffer(name, torch.from_numpy(value).to(self.weight), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Of a normalised image (N, 3, H, W)."""
        pixels = F.pad(image, 2 * [self.padding[1]] + 2 * [self.padding[0]]) * self.std + self.offset
        weight = self.weight / self.std
        bias = -(weight * self.offset).sum(dim=(1, 2, 3)) + (0.0 if self.bias is None else self.bias)
        inputs = self._input_quantizer(pixels), self._weight_quantizer(weight), bias
        return F.conv2d(*inputs, stride=self.stride, dilation=self.dilation)


def insert_quantizers(
    network: nn.Module,
    info: ModelInfo,
    quantization: Quantization,
    parts: Optional[Collection[str]] = None,
) -> None:
    """Put fake quantizers into a folded network, in place, where `export.placement` puts Q/DQ.

    Activations take one amax a tensor, which stays as it is. Weights take that of the moment, for each output channel
    or, as in the file, one for all of a transposed convolution.

    Args:
        network: folded, in float.
        info: its description.
        quantization: with a range for every tensor that `Placement.ranged` names.
        parts: which submodules of the network get them; None for all.
    """
    model = export_network(network, info.size)
    if PIXELS in quantization.amax:
        model = on_pixels(model, info)
    nodes = {node.name: node for node in model.graph.node}
    quantizers: Dict[str, nn.Module] = {}
    for tensor in place(model).activations:
        amax = quantization.amax[tensor.range_of]
        descriptor = QuantDescriptor(num_bits=quantization.bits, amax=amax)
        quantizer = quantizers.setdefault(tensor.range_of, TensorQuantizer(descriptor))
        for reader in tensor.readers:
            path = module_path(reader)
            if parts is not None and path.split(".")[0] not in parts:
                continue
            module = network.get_submodule(path)
            if isinstance(module, Add):
                skip = list(nodes[reader].input).index(tensor.name)
                network.set_submodule(path, QuantAdd(quantizer, skip))
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                of_pixels = info if tensor.name == PIXELS else None
                convolution = quantized_convolution(module, quantizer, quantization.bits, of_pixels)
                network.set_submodule(path, convolution)
            else:
                network.set_submodule(path, nn.Sequential(quantizer, module))


def module_path(node_name: str) -> str:
    """The module that a node of the backbone comes from: `/student/conv1/Conv` -> `student.conv1`."""
    return ".".join(node_name.strip("/").split("/")[:-1])


def quantized_convolution(
    module: nn.Module, quantizer: nn.Module, bits: int, of_pixels: Optional[ModelInfo] = None
) -> nn.Module:
    """The same convolution with the same parameters, quantizing its input and its weights.

    Args:
        module: a convolution or a transposed one.
        quantizer: of its input.
        bits: of the integers of its weights.
        of_pixels: where it reads pixels, what says how they were normalised.
    """
    transposed = isinstance(module, nn.ConvTranspose2d)
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if transposed else []
    arguments = {name: getattr(module, name) for name in names}
    weight = QuantDescriptor(num_bits=bits, axis=None if transposed else 0)
    kind = QuantConvTranspose2d if transposed else PixelConv2d if of_pixels else QuantConv2d
    quantized: nn.Module = kind(**arguments, bias=module.bias is not None, quant_desc_weight=weight)
    quantized.weight, quantized.bias = module.weight, module.bias
    quantized._input_quantizer = quantizer
    if of_pixels and isinstance(quantized, PixelConv2d):
        quantized.on_grid_of(of_pixels)
    return quantized


def float_state(network: nn.Module) -> Dict[str, Tensor]:
    """The state dict of a network without that of its quantizers: what the folded float network loads."""
    modules = network.named_modules(remove_duplicate=False)
    inside = tuple(f"{name}." for name, module in modules if isinstance(module, TensorQuantizer))
    return {name: value for name, value in network.state_dict().items() if not name.startswith(inside)}
