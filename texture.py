"""Texture stage: the fine detail that a completion lacks, copied from the known part of the same image."""

import math

import torch
import torch.nn.functional as F

from layers import pool

SMALLEST = 16  # pixels; bands are copied at sizes whose longer side is above it
PATCH = 7  # pixels per side
STRIDE = 3  # pixels from patch to patch of the hole
COMPONENTS = 16  # principal components that describe a patch
DETAIL = 1.0  # default share of the copied detail
BLUR = 1.0  # σ in pixels of the low-pass that patches are compared in
KEYS = 4096  # sources, at most, among which a patch searches
SEARCHED = 300  # pixels; at sizes above it, patches start from the smaller size's sources without a search
NEARNESS = 0.005  # standard deviations of the patches for a pixel of distance
COHERENCE = 0.05  # variances of the patches for each neighbour of another displacement
PASSES = 2  # over the patches, to make them coherent
GAIN = 1.15  # factor of the copied band: the mean of overlapping patches is weaker than each
FADE = 0.95  # factor of the gain for each halving of the size
RIM = 2.0  # pixels of depth over which the network knows the band itself; see `share_at_depth`
RIM_GROWTH = 1.3  # factor of `RIM` for each halving of the size
DEPTH = 12  # pixels up to which depth is counted
SAMPLE = 2048  # patches, at most, to which the components are fitted
CHUNK = 1024  # patches that search at once
NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def add_texture(completed: torch.Tensor, mask: torch.Tensor, detail: float = DETAIL) -> torch.Tensor:
    """Sharpen the hole of completed images with detail copied from their known part, without training.

    A network trained for the least error returns the mean of what may be in the hole, which lacks the
    frequencies that the known pixels do not determine. From coarse to fine, at each size of a pyramid, each
    patch of the hole takes the band that its size adds from a known patch that looks alike below that band,
    lies near, and continues the sources of neighbouring patches. The completion itself is kept; the band is
    added to it, from the rim of the hole inwards.

    Freeman et al., "Example-Based Super-Resolution", IEEE CG&A 2002, adds bands from similar patches of other
    images; sources are carried from patch to patch and from size to size as in Barnes et al., "PatchMatch",
    SIGGRAPH 2009.

    Args:
        detail: share of the copied detail, in [0, 1]; 0 returns the images as they are.

    Shapes:
        completed (B, C, H, W) in [0, 1], the known pixels outside the hole and a completion inside; mask
        (B, 1, H, W), 1 = missing. Returns (B, C, H, W) in [0, 1], equal to `completed` outside the hole.

    Raises:
        ValueError: for a detail outside [0, 1].
    """
    check_detail(detail)
    if detail == 0:
        return completed
    images = []
    for image, hole in zip(completed.split(1), (mask > 0).split(1), strict=True):
        difference = sharpen(image.float(), hole) - image
        images.append(torch.where(hole, (image + detail * difference).clamp(0, 1).to(image.dtype), image))
    return torch.cat(images)


def check_detail(detail: float) -> None:
    """Raise a `ValueError` for a detail outside [0, 1]."""
    if not 0 <= detail <= 1:
        raise ValueError(f"detail must be in [0, 1], got {detail}")


@torch.no_grad()
def sharpen(image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Add the copied bands of all sizes to one image (1, C, H, W) under its hole (1, 1, H, W) bool."""
    sizes = [(image, hole)]
    while max(image.shape[-2:]) > SMALLEST:
        image, hole = pool(image, 2), F.max_pool2d(hole.float(), 2, ceil_mode=True) > 0
        sizes.append((image, hole))
    smaller, _ = sizes.pop()
    result, field = smaller, None
    for halvings, (image, hole) in reversed(list(enumerate(sizes))):
        band = image - enlarge(smaller, image)
        result = torch.where(hole, enlarge(result, image) + band, image)
        depth = depth_of(hole)
        coarser, field = field, Field.of(hole) if depth.max() > 1 else None
        if field is not None:
            field.find_sources(gaussian(result, BLUR), coarser)
            share = GAIN * FADE**halvings * share_at_depth(depth, RIM * RIM_GROWTH**halvings)
            result = torch.where(hole, result + share * field.copy(band), image)
        smaller = image
    return result


def enlarge(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear enlargement to twice the size, cut to the height and width of `like`."""
    height, width = like.shape[-2:]
    return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]


def gaussian(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (1, C, H, W), σ in pixels; the border's values are repeated."""
    radius, channels = math.ceil(3 * sigma), image.shape[1]
    offsets = torch.arange(-radius, radius + 1, device=image.device)
    window = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0).expand(channels, 1, 1, -1)
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, window, groups=channels), window.transpose(2, 3), groups=channels)


def depth_of(hole: torch.Tensor) -> torch.Tensor:
    """Steps from each pixel to the known ones, up to `DEPTH`: (1, 1, H, W) bool to float, 0 where known.

    Steps go to 4 and to 8 neighbours in turn, so that equal depths are octagons around a known pixel.
    """
    missing = hole.float()
    depth = missing.clone()
    for step in range(1, DEPTH):
        if step % 2:  # erosion by a cross
            rows = F.max_pool2d(1 - missing, (3, 1), 1, (1, 0))
            columns = F.max_pool2d(1 - missing, (1, 3), 1, (0, 1))
            missing = 1 - torch.maximum(rows, columns)
        else:
            missing = 1 - F.max_pool2d(1 - missing, 3, 1, 1)
        depth = depth + missing
    return depth


def share_at_depth(depth: torch.Tensor, rim: float) -> torch.Tensor:
    """Share of the copied band at a depth, from 0 to 1: near known pixels, the completion has its own."""
    return 1 - torch.exp(-((depth / rim) ** 2))


class Field:
    """The patches of one image's hole, on a grid, and the known patch that is the source of each.

    Positions are numbers of pixels in rows, y·W + x, of the patches' centres.

    Attributes:
        valid: (H·W,) bool, whether a position's patch is wholly known.
        keys: valid positions among which patches search.
        patches: positions (N,) of the patches that reach into the hole.
        sources: positions (N,) of their sources, after `find_sources`.
    """

    def __init__(self, hole: torch.Tensor) -> None:
        self.height, self.width = hole.shape[-2:]
        radius = PATCH // 2
        unknown = F.pad(hole.float(), (radius,) * 4, value=1)  # beyond the border as well
        self.valid = F.max_pool2d(unknown, PATCH, 1).flatten() == 0
        keys = self.valid.nonzero()[:, 0]
        self.keys = keys[:: math.ceil(len(keys) / KEYS)] if len(keys) else keys
        touched = F.max_pool2d(hole.float(), PATCH, 1, radius)[0, 0, ::STRIDE, ::STRIDE] > 0
        row, column = touched.nonzero().unbind(1)
        self.y, self.x = row * STRIDE, column * STRIDE
        self.patches = self.y * self.width + self.x
        number = torch.full_like(touched, -1, dtype=torch.long)
        number[row, column] = torch.arange(len(row), device=hole.device)
        self.number = F.pad(number, (1, 1, 1, 1), value=-1)  # each cell's patch, -1 for none
        self.row, self.column = row + 1, column + 1
        self.sources = self.patches

    @classmethod
    def of(cls, hole: torch.Tensor) -> "Field | None":
        """The field of a hole (1, 1, H, W) bool; None if too little is known to copy from."""
        field = cls(hole)
        return field if len(field.keys) >= 2 * COMPONENTS else None

    def find_sources(self, image: torch.Tensor, coarser: "Field | None") -> None:
        """Choose the source of each patch in an image (1, C, H, W), given the field of the smaller size."""
        features = self.describe(image)
        variance = features[self.keys].var(0).sum()
        penalty = COHERENCE * variance
        positions = torch.arange(self.height * self.width, device=image.device)
        place = torch.stack([positions // self.width, positions % self.width], dim=1)
        features = torch.cat([features, NEARNESS * variance.sqrt() * place], dim=1)
        if coarser is None or max(self.height, self.width) <= SEARCHED:
            sources = self.nearest(features, self.patches)
            if coarser is not None:
                carried = self.carry(coarser)
                is_kept = self.cost(features, carried) <= self.cost(features, sources) + penalty
                sources = torch.where(is_kept, carried, sources)
        else:
            sources = self.carry(coarser)
            lost = (~self.is_source(sources)).nonzero()[:, 0]
            sources[lost] = self.nearest(features, self.patches[lost])
            sources = self.improve(features, sources)
        self.sources = self.make_coherent(features, sources, penalty)

    def describe(self, image: torch.Tensor) -> torch.Tensor:
        """Principal components (H·W, `COMPONENTS`) of each pixel's patch, fitted to known patches."""
        channels, radius = image.shape[1], PATCH // 2
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        sample = self.keys[:: math.ceil(len(self.keys) / SAMPLE)]
        steps = torch.arange(PATCH, device=image.device)
        rows = (sample // self.width)[:, None, None] + steps[:, None]
        columns = (sample % self.width)[:, None, None] + steps
        known = padded[0][:, rows, columns].transpose(0, 1).flatten(1)  # (samples, C·PATCH²)
        mean = known.mean(0)
        covariance = ((known - mean).t() @ (known - mean)).double().cpu()
        axes = torch.linalg.eigh(covariance)[1][:, -COMPONENTS:].to(known)
        kernels = axes.t().reshape(-1, channels, PATCH, PATCH)
        return F.conv2d(padded, kernels, bias=-(mean @ axes))[0].flatten(1).t().contiguous()

    def nearest(self, features: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """The key of the least squared distance to each of some patches."""
        keys = features[self.keys]
        norms, directions = keys.square().sum(1), (-2 * keys).t().contiguous()
        found = [torch.addmm(norms, features[part], directions).argmin(1) for part in patches.split(CHUNK)]
        return self.keys[torch.cat(found)] if found else patches

    def is_source(self, positions: torch.Tensor) -> torch.Tensor:
        """Whether positions, of which -1 stands for none, can be sources."""
        return (positions >= 0) & self.valid[positions.clamp_min(0)]

    def cost(
        self, features: torch.Tensor, positions: torch.Tensor, group: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Squared distances of positions (..., n) to a group of n patches, infinite if not a source."""
        distance = (features[positions.clamp_min(0)] - features[self.patches[group]]).square().sum(-1)
        return distance.masked_fill(~self.is_source(positions), math.inf)

    def position(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Positions of coordinates, -1 outside the image."""
        is_inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        return torch.where(is_inside, y * self.width + x, -1)

    def carry(self, coarser: "Field") -> torch.Tensor:
        """The sources that twice the displacements in the field of half the size give; -1 for none."""
        row, column = ((side / 2 / STRIDE).round().long() for side in (self.y, self.x))
        last_row, last_column = (side - 1 for side in coarser.number.shape)
        number = coarser.number[(row + 1).clamp_max(last_row), (column + 1).clamp_max(last_column)]
        patch = number.clamp_min(0)
        y = self.y + 2 * (coarser.sources[patch] // coarser.width - coarser.y[patch])
        x = self.x + 2 * (coarser.sources[patch] % coarser.width - coarser.x[patch])
        return torch.where(number >= 0, self.position(y, x), -1)

    def improve(self, features: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """The best of each source and its eight neighbouring pixels."""
        y, x = sources // self.width, sources % self.width
        candidates = torch.stack([sources, *(self.position(y + dy, x + dx) for dy, dx in NEIGHBOURS)])
        return candidates.gather(0, self.cost(features, candidates).argmin(0)[None])[0]

    def make_coherent(
        self, features: torch.Tensor, sources: torch.Tensor, penalty: torch.Tensor
    ) -> torch.Tensor:
        """Lower the sum of costs and penalties, where the displacements of neighbouring patches differ.

        In turn, the patches of four colours, of which no two are neighbours, choose among their own source
        and those that continue their neighbours'.
        """
        y, x = sources // self.width, sources % self.width
        offsets = torch.tensor(NEIGHBOURS, device=sources.device)
        neighbours = self.number[self.row + offsets[:, :1], self.column + offsets[:, 1:]]  # (8, N)
        color = self.row % 2 * 2 + self.column % 2
        groups = [(color == i).nonzero()[:, 0] for i in range(4)]
        for group in groups * PASSES:
            number = neighbours[:, group]
            shift = STRIDE * offsets[:, :, None]
            continued_y, continued_x = y[number] - shift[:, 0], x[number] - shift[:, 1]
            continued = torch.where(number >= 0, self.position(continued_y, continued_x), -1)
            candidates = torch.cat([self.position(y[group], x[group])[None], continued])  # (9, n)
            disagrees = (candidates[:, None] != continued) & (number >= 0)
            energy = self.cost(features, candidates, group) + penalty * disagrees.sum(1)
            chosen = energy.argmin(0)
            best = candidates.gather(0, chosen[None])[0]
            y[group], x[group] = best // self.width, best % self.width
        return y * self.width + x

    def copy(self, band: torch.Tensor) -> torch.Tensor:
        """The mean (1, C, H, W) of the sources' patches of a band, weighted by a window."""
        radius, stride = PATCH // 2, self.width + PATCH - 1
        padded = F.pad(band[0], (radius,) * 4).flatten(1).t()
        total = torch.zeros_like(padded)
        weight = torch.full_like(padded[:, :1], 1e-8)
        hann = torch.hann_window(PATCH + 2, periodic=False, device=band.device)[1:-1]
        corner = self.y * stride + self.x
        source = self.sources // self.width * stride + self.sources % self.width
        for dy in range(PATCH):
            for dx in range(PATCH):  # no two patches meet in a pixel, so that the sums are repeatable
                offset, share = dy * stride + dx, hann[dy] * hann[dx]
                total[corner + offset] += share * padded[source + offset]
                weight[corner + offset] += share
        mean = (total / weight).t().reshape(1, -1, self.height + PATCH - 1, stride)
        return mean[..., radius:-radius, radius:-radius]
