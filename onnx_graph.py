"""Assembles the ONNX file: recorded parts of the network, inside loops over the pyramid."""

import io
import warnings
from typing import Any

import onnx
import torch
from torch import nn

from exportable import Enlarge, Level, Pull, examples
from models import InpaintingNetwork

OPSET = 18
# The pyramid, as `InpaintingNetwork.complete` walks it. Nodes of the domain `part` stand for recorded graphs.
# `prefill` may be left out; if it is given, the image alone is completed over it (`complete_over`).
PYRAMID = """
<ir_version: 8, opset_import: ["" : 18, "part" : 1]>
inpainting (
    float[batch, 3, height, width] image,
    float[batch, 1, height, width] mask,
    float[guesses, 3, guess_height, guess_width] prefill
) => (float[batch, 3, height, width] output) {
    nothing = Constant <value = float {0.0}> ()
    all = Constant <value = float {1.0}> ()
    grey = Constant <value = float {0.5}> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    many = Constant <value = int64 {64}> ()
    base = Constant <value = int64 {BASE}> ()
    always = Constant <value = bool {1}> ()

    missing = Greater (mask, nothing)
    known = Where (missing, nothing, image)
    hole = Where (missing, all, nothing)
    guess_size = Size (prefill)
    alone = Equal (guess_size, zero)

    image_shape = Shape <start = 2> (image)
    longer = ReduceMax <keepdims = 0> (image_shape)
    divisible = Greater (longer, one)
    halve = And (divisible, alone)
    images0 = SequenceConstruct (known)
    holes0 = SequenceConstruct (hole)
    top, top_hole, images, holes, last, side =
        Loop (many, halve, known, hole, images0, holes0, zero, longer) <
        body = pull (
            int64 i, bool go, float[?,3,?,?] fine, float[?,1,?,?] fine_hole,
            seq(float[?,3,?,?]) images_in, seq(float[?,1,?,?]) holes_in, int64 last_in, int64 side_in
        ) => (
            bool go_on, float[?,3,?,?] coarse, float[?,1,?,?] coarse_hole,
            seq(float[?,3,?,?]) images_out, seq(float[?,1,?,?]) holes_out, int64 last_out, int64 side_out
        ) {
            coarse, coarse_hole = part.pull (fine, fine_hole)
            images_out = SequenceInsert (images_in, coarse)
            holes_out = SequenceInsert (holes_in, coarse_hole)
            too_large = Greater (side_in, base)
            step = Cast <to = 7> (too_large)
            last_out = Add (last_in, step)
            coarse_shape = Shape <start = 2> (coarse)
            side_out = ReduceMax <keepdims = 0> (coarse_shape)
            go_on = Greater (side_out, one)
        }
    >

    start = If (alone) <
        then_branch = grey_top () => (float[?,3,?,?] flat) {
            black = Mul (top, nothing)
            flat = Add (black, grey)
        },
        else_branch = given () => (float[?,3,?,?] guess) { guess = Identity (prefill) }
    >
    levels = SequenceLength (images)
    completions = Add (last, one)
    prefills = Sub (levels, completions)
    base_prefill = Loop (prefills, always, start) <
        body = push (int64 j, bool go, float[?,3,?,?] below) => (bool go_on, float[?,3,?,?] filled) {
            go_on = Identity (go)
            done = Add (j, one)
            k = Sub (levels, done)
            image_k = SequenceAt (images, k)
            hole_k = SequenceAt (holes, k)
            filled = part.enlarge (below, image_k, hole_k)
        }
    >
    completed = Loop (completions, always, base_prefill) <
        body = complete (int64 j, bool go, float[?,3,?,?] below) => (bool go_on, float[?,3,?,?] filled) {
            go_on = Identity (go)
            k = Sub (last, j)
            image_k = SequenceAt (images, k)
            hole_k = SequenceAt (holes, k)
            filled = part.level (below, image_k, hole_k)
        }
    >
    clipped = Clip (completed, nothing, all)
    output = Where (missing, clipped, image)
}
"""


def build_model(network: InpaintingNetwork, *, half: bool) -> onnx.ModelProto:
    """The network as an ONNX model of image and mask (and, if given, a prefill), for any batch and size."""
    below, image, mask = examples()
    parts = {
        "pull": record(Pull(), (image, mask), ("image", "mask"), ("coarse", "coarse_hole")),
        "enlarge": record(Enlarge(), (below, image, mask), ("below", "image", "mask"), ("filled",)),
        "level": record(
            Level(network, half=half), (below, image, mask), ("below", "image", "mask"), ("filled",)
        ),
    }
    model = onnx.parser.parse_model(PYRAMID.replace("BASE", str(network.pyramid_base)))
    insert(model.graph, parts)
    del model.opset_import[1]
    absent = onnx.helper.make_tensor("prefill", onnx.TensorProto.FLOAT, (0, 3, 0, 0), [])
    model.graph.initializer.append(absent)  # an input with a default value may be left out
    onnx.checker.check_model(model)
    return model


def record(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], names: tuple[str, ...], results: tuple[str, ...]
) -> onnx.GraphProto:
    """The graph of a module without a decision by size, for every batch, height and width."""
    axes = {name: {0: f"{name}_0", 2: f"{name}_2", 3: f"{name}_3"} for name in (*names, *results)}
    file: Any = io.BytesIO()  # the exporter writes to files as well, which its annotation does not say
    with warnings.catch_warnings():
        # The exporter through torch.export needs minutes for these shapes and truncates their divisions.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.onnx.export(
            module.eval(), inputs, file, dynamo=False, opset_version=OPSET,
            input_names=list(names), output_names=list(results), dynamic_axes=axes,
        )  # fmt: skip
    graph = onnx.load_model_from_string(file.getvalue()).graph
    del graph.value_info[:]
    return graph


def insert(graph: onnx.GraphProto, parts: dict[str, onnx.GraphProto]) -> None:
    """Put recorded graphs and their weights in the place of the nodes that stand for them, in subgraphs too.

    The weights belong inside a loop's body: runtimes rearrange only weights of the graph that uses them.
    """
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                insert(attribute.g, parts)
        if node.domain != "part":
            graph.node.append(node)
            continue
        part = onnx.GraphProto()
        part.CopyFrom(parts[node.op_type])
        onnx.compose.add_prefix_graph(part, f"{node.op_type}/", inplace=True)
        outer = dict(zip([each.name for each in part.input], node.input, strict=True))
        outer |= dict(zip([each.name for each in part.output], node.output, strict=True))
        for inner in part.node:
            inner.input[:] = [outer.get(name, name) for name in inner.input]
            inner.output[:] = [outer.get(name, name) for name in inner.output]
        graph.node.extend(part.node)
        graph.initializer.extend(part.initializer)
