"""A trained network in the form in which it is exported and quantized.

Every BatchNorm is folded into the convolution before it, and every module and residual add of the backbone has a name
of its own, which becomes that of its ONNX node: `student.body_layer1_0_conv1` is `/student/body_layer1_0_conv1/Conv`.
"""

import copy
import operator
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.errors import ExportError

BOUNDARY = ("normalize", "head")  # the submodules between which the backbone lies
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
# Functions whose input or weights INT8 would quantize: only modules have a name to put a quantizer at.
FUNCTIONS = {
    F.conv2d: "nn.Conv2d",
    torch.conv2d: "nn.Conv2d",
    F.conv_transpose2d: "nn.ConvTranspose2d",
    torch.conv_transpose2d: "nn.ConvTranspose2d",
    F.max_pool2d: "nn.MaxPool2d",
    torch.max_pool2d: "nn.MaxPool2d",
}


class Add(nn.Module):
    """The sum of two tensors of one shape, as a module so that it has a name."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Left operand first: the order decides which branch is the skip branch."""
        return left + right


def parts_of(network: nn.Module) -> List[str]:
    """The names of the submodules that make up the backbone."""
    return [name for name, _ in network.named_children() if name not in BOUNDARY]


def fold(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, each part of its backbone a `torch.fx.GraphModule` without nesting.

    A part may be an nn.ModuleList, such as an ensemble of students: each of its members is folded.

    Raises:
        ExportError: a part cannot be traced, or calls as a function what must be a module.
    """
    folded = copy.deepcopy(network).eval()
    for name in parts_of(folded):
        setattr(folded, name, _fold(getattr(folded, name), name))
    return folded


def _fold(part: nn.Module, place: str) -> nn.Module:
    if isinstance(part, nn.ModuleList):
        return nn.ModuleList(_fold(member, f"{place}.{index}") for index, member in enumerate(part))
    try:
        traced = symbolic_trace(part)
    except torch.fx.proxy.TraceError as error:
        raise ExportError(f"{place} cannot be traced by torch.fx: {error}") from error
    except NotImplementedError as error:
        raise ExportError(
            f"{place} is a {type(part).__name__}, which has no forward of its own: use nn.ModuleList"
        ) from error
    modules: Dict[str, nn.Module] = {}
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            source = node.args[0]
            convolution = modules.get(source.name)
            if isinstance(module, nn.Dropout):  # nothing, in evaluation mode
                node.replace_all_uses_with(source)
                traced.graph.erase_node(node)
            elif (
                isinstance(module, nn.BatchNorm2d)
                and isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d))
                and len(source.users) == 1
            ):
                fused = fuse_conv_bn_eval(convolution, module, isinstance(convolution, nn.ConvTranspose2d))
                # Torch freezes a bias that the convolution did not have before.
                fused.requires_grad_(convolution.weight.requires_grad)
                modules[source.name] = fused
                node.replace_all_uses_with(source)
                traced.graph.erase_node(node)
            else:
                # A module that is called twice gets two names; its parameters, if any, stay shared.
                modules[node.name] = copy.copy(module)
                node.target = node.name
        elif node.target in ADDITIONS and all(isinstance(operand, Node) for operand in node.args):
            if node.kwargs:
                raise ExportError(f"{place} adds with {', '.join(node.kwargs)}: multiply first, then add")
            modules[node.name] = Add()
            node.op, node.target = "call_module", node.name
        elif node.target in FUNCTIONS:
            raise ExportError(f"{place} calls {node.target.__name__} as a function: make it a {FUNCTIONS[node.target]}")
    tensors = {node.target: _attribute(traced, node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    return GraphModule({**modules, **tensors}, traced.graph).eval()


def _attribute(module: nn.Module, name: str) -> object:
    for part in name.split("."):
        module = getattr(module, part)
    return module
