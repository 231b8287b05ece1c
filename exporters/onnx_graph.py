"""Assembles the ONNX file: recorded parts of the network, inside loops over the pyramid."""

import io
import warnings
from typing import Any

import onnx
import torch
from torch import nn

from exporters.traceable import (
    ApplyPrior,
    Enlarge,
    Level,
    Pull,
    ShapeAgnosticPrior,
    examples,
    shape_agnostic_prior,
)
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
    list = Constant <value = int64[1] {1}> ()
    across = Constant <value = int64[1] {3}> ()
    end = Constant <value = int64[1] {-1}> ()
    back = Constant <value = int64[1] {-1}> ()
    begin = Constant <value = int64[1] {-9223372036854775807}> ()
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
    base_image = SequenceAt (images, last)
    base_hole = SequenceAt (holes, last)
FIRST_GUESS
    completed = Loop (completions, always, first_guess) <
        body = complete (int64 j, bool go, float[?,3,?,?] below) => (bool go_on, float[?,3,?,?] filled) {
            go_on = Identity (go)
            k = Sub (last, j)
            image_k = SequenceAt (images, k)
            hole_k = SequenceAt (holes, k)
            is_first = Equal (j, zero)
            twice = And (is_first, alone)
            guesses_k, images_k, holes_k = If (twice) <
                then_branch = with_mirror_image () => (
                    float[?,3,?,?] guess_pair, float[?,3,?,?] image_pair, float[?,1,?,?] hole_pair
                ) {
                    guess_mirrored = Slice (below, end, begin, across, back)
                    image_mirrored = Slice (image_k, end, begin, across, back)
                    hole_mirrored = Slice (hole_k, end, begin, across, back)
                    guess_pair = Concat <axis = 0> (below, guess_mirrored)
                    image_pair = Concat <axis = 0> (image_k, image_mirrored)
                    hole_pair = Concat <axis = 0> (hole_k, hole_mirrored)
                },
                else_branch = straight_on () => (
                    float[?,3,?,?] guess_one, float[?,3,?,?] image_one, float[?,1,?,?] hole_one
                ) {
                    guess_one = Identity (below)
                    image_one = Identity (image_k)
                    hole_one = Identity (hole_k)
                }
            >
            completed_k = part.level (guesses_k, images_k, holes_k)
            filled = If (twice) <
                then_branch = mean () => (float[?,3,?,?] averaged) {
                    straight, mirrored = Split <axis = 0, num_outputs = 2> (completed_k)
                    mirrored_back = Slice (mirrored, end, begin, across, back)
                    sum = Add (straight, mirrored_back)
                    averaged = Mul (sum, grey)
                },
                else_branch = one_completion () => (float[?,3,?,?] single) { single = Identity (completed_k) }
            >
        }
    >
    clipped = Clip (completed, nothing, all)
    output = Where (missing, clipped, image)
}
"""

# `GaussianPrior`: its equations (B, rank, rank + 1), the right side last, solved by Gauss-Jordan elimination.
# Step k takes (column k - e_k) times (row k / pivot) from them; positive definite, they need no pivoting.
WITH_PRIOR = """
    first_guess = If (alone) <
        then_branch = expected_completion () => (float[?,3,?,?] guess) {
            rank = Constant <value = int64 {RANK}> ()
            push_pull = part.enlarge (base_prefill, base_image, base_hole)
            equations = part.equations (base_image, base_hole)
            solved = Loop (rank, always, equations) <
                body = eliminate (int64 k, bool go, float[?,?,?] before) => (bool go_on, float[?,?,?] after) {
                    go_on = Identity (go)
                    at_k = Reshape (k, list)
                    row = Gather <axis = 1> (before, at_k)
                    pivot = Gather <axis = 2> (row, at_k)
                    scaled = Div (row, pivot)
                    column = Gather <axis = 2> (before, at_k)
                    indices = Range (zero, rank, one)
                    is_k = Equal (indices, at_k)
                    unit = Cast <to = 1> (is_k)
                    unit_column = Unsqueeze (unit, list)
                    factor = Sub (column, unit_column)
                    step = MatMul (factor, scaled)
                    after = Sub (before, step)
                }
            >
            z = Gather <axis = 2> (solved, rank)
            expected = part.picture (z, base_image)
            guess = part.expect (expected, push_pull, base_image, base_hole)
        },
        else_branch = as_given () => (float[?,3,?,?] same) { same = Identity (base_prefill) }
    >
"""
WITHOUT_PRIOR = """
    first_guess = Identity (base_prefill)
"""


class PriorPart(nn.Module):
    """A part of what a prior computes, for a picture of any size."""

    def __init__(self, prior: ShapeAgnosticPrior) -> None:
        super().__init__()
        self.prior = prior


class Equations(PriorPart):
    """The equations of a prior with the right side as their last column: (B, rank, rank + 1)."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean, basis = self.prior.scaled_to(image.shape[2], image.shape[3])
        return torch.cat(self.prior.equations(mean, basis, image, mask), dim=2)


class Picture(PriorPart):
    """The picture of components z (B, rank), of the size of `image`."""

    def forward(self, z: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        mean, basis = self.prior.scaled_to(image.shape[2], image.shape[3])
        return self.prior.picture(mean, basis, z).view(image.shape)


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
    prior = shape_agnostic_prior(network)
    if prior is not None:
        z, expect = torch.zeros(len(image), prior.rank), ApplyPrior(network.pyramid_base)
        parts["equations"] = record(Equations(prior), (image, mask), ("image", "mask"), ("equations",))
        parts["picture"] = record(Picture(prior), (z, image), ("z", "image"), ("expected",))
        parts["expect"] = record(
            expect, (image, image, image, mask), ("expected", "prefill", "image", "mask"), ("guess",)
        )
    first_guess = WITHOUT_PRIOR if prior is None else WITH_PRIOR.replace("RANK", str(prior.rank))
    text = PYRAMID.replace("FIRST_GUESS", first_guess).replace("BASE", str(network.pyramid_base))
    model = onnx.parser.parse_model(text)
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
    axes = {
        name: {axis: f"{name}_{axis}" for axis in ((0,) if name in ("z", "equations") else (0, 2, 3))}
        for name in (*names, *results)
    }
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
