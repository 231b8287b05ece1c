"""The network as an ONNX file: `Completion` as loops, with the recorded graphs of its parts inside."""

import io
import warnings
from typing import Any

import onnx
import torch
from torch import nn

from exporters.traceable import Completion, Enlarge, FirstGuess, Level, Pull, examples
from models import InpaintingNetwork

OPSET = 18
# parts of `Completion`, each with its inputs and outputs
PARTS = {
    "pull": (("image", "mask"), ("smaller", "smaller_mask")),
    "enlarge": (("below", "image", "mask"), ("filled",)),
    "guess": (("prefill", "image", "mask"), ("filled",)),
    "level": (("below", "image", "mask"), ("filled",)),
}


class Placeholder(nn.Module):
    """A part of `Completion` that is recorded as one node, for `insert` to replace."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *tensors: torch.Tensor) -> Any:
        return getattr(torch.ops.part, self.name)(*tensors)


def define_nodes(library: torch.library.Library) -> None:
    """Give `Placeholder` its operators, and the exporter their nodes of domain `part`."""
    for name, (inputs, outputs) in PARTS.items():

        def run(*tensors: torch.Tensor, outputs: tuple[str, ...] = outputs) -> Any:
            copies = [x.clone() for x in tensors[-2:]]  # any values will do, the exporter runs the graph once
            return tuple(copies) if len(outputs) == 2 else copies[0]

        def node(g: Any, *args: Any, name: str = name, outputs: tuple[str, ...] = outputs) -> Any:
            return g.op(f"part::{name}", *args, outputs=len(outputs))

        arguments = ", ".join(f"Tensor {argument}" for argument in inputs)
        library.define(f"{name}({arguments}) -> ({', '.join('Tensor' for _ in outputs)})")
        library.impl(name, run, "CPU")
        torch.onnx.register_custom_op_symbolic(f"part::{name}", node, 1)


library = torch.library.Library("part", "DEF")
define_nodes(library)


def build_model(network: InpaintingNetwork, *, half: bool) -> onnx.ModelProto:
    """The network as an ONNX model of image and mask (and, if given, a prefill), for any batch and size."""
    below, image, mask = examples()
    inputs = {"pull": (image, mask), "enlarge": (below, image, mask), "level": (below, image, mask)}
    inputs["guess"] = (image, image, mask)
    modules = {"pull": Pull(), "enlarge": Enlarge(), "level": Level(network, half=half)}
    modules["guess"] = FirstGuess(network)
    with warnings.catch_warnings():
        # The exporter through torch.export needs minutes for these shapes and truncates their divisions.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        parts = {name: record(modules[name], inputs[name], *PARTS[name]).graph for name in PARTS}
        placeholders = {name: torch.jit.trace(Placeholder(name), inputs[name]) for name in PARTS}
        completion = torch.jit.script(Completion(**placeholders, pyramid_base=network.pyramid_base).eval())
        model = record(completion, (image, mask, image), ("image", "mask", "prefill"), ("output",))
    insert(model.graph, parts)
    del model.opset_import[1:]  # domain `part`
    absent = onnx.helper.make_tensor("prefill", onnx.TensorProto.FLOAT, (0, 3, 0, 0), [])
    model.graph.initializer.append(absent)  # an input with a default value may be left out
    onnx.checker.check_model(model)
    return model


def record(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], names: tuple[str, ...], results: tuple[str, ...]
) -> onnx.ModelProto:
    """The ONNX model of a module whose control flow does not depend on the size, for any batch and size."""
    axes = {name: {axis: f"{name}_{axis}" for axis in (0, 2, 3)} for name in (*names, *results)}
    file: Any = io.BytesIO()  # the exporter writes to files as well, which its annotation does not say
    torch.onnx.export(
        module.eval(), inputs, file, dynamo=False, opset_version=OPSET,
        input_names=list(names), output_names=list(results), dynamic_axes=axes,
    )  # fmt: skip
    model = onnx.load_model_from_string(file.getvalue())
    del model.graph.value_info[:]
    return model


def insert(graph: onnx.GraphProto, parts: dict[str, onnx.GraphProto]) -> None:
    """Replace the nodes of domain `part` by recorded graphs and their weights, in subgraphs too.

    The weights belong inside a loop's body: runtimes rearrange only weights of the graph that uses them.
    """
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                del attribute.g.value_info[:]
                for value in (*attribute.g.input[2:], *attribute.g.output):
                    value.ClearField("type")  # unknown to the exporter in part, inferred by runtimes
                insert(attribute.g, parts)
        if node.domain != "part":
            graph.node.append(node)
            continue
        part = onnx.GraphProto()
        part.CopyFrom(parts[node.op_type])
        onnx.compose.add_prefix_graph(part, f"{node.op_type}/", inplace=True)
        renamed = dict(zip([value.name for value in part.input], node.input, strict=True))
        renamed |= dict(zip([value.name for value in part.output], node.output, strict=True))
        for inner in part.node:
            inner.input[:] = [renamed.get(name, name) for name in inner.input]
            inner.output[:] = [renamed.get(name, name) for name in inner.output]
        graph.node.extend(part.node)
        graph.initializer.extend(part.initializer)
