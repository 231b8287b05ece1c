"""The scan of a baseline JPEG, of which only the bits of changed blocks are replaced (T.81, annex F)."""

import numpy as np

from imaging.formats.jpeg_segments import DHT, SOS, Frame, Segment

NATURAL = np.array(  # index within a block, row by row, of each coefficient in zigzag order
    sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
)
SIZE = np.array(
    [i.bit_length() for i in range(1 << 15)] + [16], np.int64
)  # bits of a coefficient, by its magnitude
RESTART, LINES = 0xDD, 0xDC  # markers: restart interval, number of lines after the scan
END_OF_BLOCK, SIXTEEN_ZEROS = 0x00, 0xF0  # AC symbols
MAX_COMPARED = 256  # MCUs that `Scan.holds` compares
BLOCKS_AT_ONCE = 16384  # bounds the memory of `Scan.index`


class Unsuitable(ValueError):
    """The file is of another kind, or its Huffman tables lack a needed code."""


class Huffman:
    """A table of codes: the bits of each symbol and their number, 0 if it has no code."""

    def __init__(self, counts: bytes, symbols: bytes) -> None:
        self.codes, self.lengths = np.zeros(256, np.int64), np.zeros(256, np.int64)
        lengths = np.repeat(np.arange(1, 17), list(counts))
        code = 0
        for i, (symbol, length) in enumerate(zip(symbols, lengths, strict=True)):
            self.codes[symbol], self.lengths[symbol] = code, length
            code = (code + 1) << (int(lengths[i + 1] - length) if i + 1 < len(lengths) else 0)


def read_huffman(segments: list[Segment]) -> dict[int, Huffman]:
    """The tables, by 16 times their class (0 DC, 1 AC) plus their number."""
    found = {}
    for content in (s.content for s in segments if s.marker == DHT):
        at = 0
        while at + 17 <= len(content):
            end = at + 17 + sum(content[at + 1 : at + 17])
            found[content[at]] = Huffman(content[at + 1 : at + 17], content[at + 17 : end])
            at = end
    return found


def ac_symbols(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The nonzero AC coefficients of `blocks` (N, 64), in the order of the scan.

    Returns:
        The block of each, its place in zigzag order, the number of zeros before it, and its value.
    """
    flat = blocks.take(NATURAL, axis=1).reshape(-1)
    found = np.flatnonzero(flat)
    found = found[found & 63 != 0]
    block, place = found >> 6, found & 63
    before = np.zeros_like(place)
    before[1:] = np.where(block[1:] == block[:-1], place[:-1], 0)
    return block, place, place - before - 1, flat.take(found).astype(np.int64)


class Scan:
    """The only scan of a baseline JPEG without restart intervals.

    Each minimum coded unit (MCU) has a group of blocks per component. At the right and lower edge some of
    these lie beyond the image: the planes of coefficients (rows, columns, 64) here include them.

    Attributes:
        size: height and width of the image, padded to whole MCUs.
        bits, starts: the bits, one per byte, the first bit of each MCU and the end; set by `index`.

    Raises:
        Unsuitable: if the file is of another kind.
    """

    def __init__(self, segments: list[Segment], frame: Frame) -> None:
        markers = [s.marker for s in segments]
        if frame.process not in (0xC0, 0xC1) or markers.count(SOS) != 1 or {RESTART, LINES} & set(markers):
            raise Unsuitable("not one baseline scan")
        at = markers.index(SOS)
        self.data = np.frombuffer(segments[at].scan.replace(b"\xff\0", b"\xff"), np.uint8)
        header, count = segments[at].content, len(frame.components)
        if [header[0], *header[1 : 1 + 2 * count : 2]] != [count, *(c[0] for c in frame.components)]:
            raise Unsuitable("components of another order")
        try:
            tables = read_huffman(segments[:at])
            chosen = header[2 : 2 + 2 * count : 2]
            self.tables = [(tables[number >> 4], tables[16 | (number & 15)]) for number in chosen]
        except (KeyError, ValueError):
            raise Unsuitable("no Huffman tables") from None
        self.groups = [(v, h) for _, h, v, _ in frame.components] if count > 1 else [(1, 1)]
        high, wide = (8 * max(group[i] for group in self.groups) for i in (0, 1))
        self.rows, self.columns = -(-frame.height // high), -(-frame.width // wide)
        self.size = self.rows * high, self.columns * wide
        self.starts, self.bits = np.zeros(0, np.int64), np.zeros(0, np.uint8)

    def index(self, planes: list[np.ndarray]) -> None:
        """Find the first bit of each MCU from the coefficients.

        Raises:
            Unsuitable: if they do not have as many bits as the scan.
        """
        total = np.zeros(self.rows * self.columns, np.int64)
        for plane, group, (dc, ac) in zip(planes, self.groups, self.tables, strict=True):
            blocks = plane.reshape(-1, 64)
            bits = []
            for start in range(0, len(blocks), BLOCKS_AT_ONCE):
                part = blocks[start : start + BLOCKS_AT_ONCE]
                block, place, zeros, value = ac_symbols(part)
                size = SIZE[np.abs(value)]
                bits_of_value = (
                    ac.lengths[(zeros & 15) << 4 | size] + size + (zeros >> 4) * ac.lengths[SIXTEEN_ZEROS]
                )
                last = np.zeros(len(part), np.int64)
                last[block] = place
                whole = np.bincount(block, bits_of_value, len(part)).astype(np.int64)
                bits.append(whole + (last != 63) * ac.lengths[END_OF_BLOCK])
            total += self._units(np.concatenate(bits), group).sum(axis=1)
            size = SIZE[np.abs(self._differences(plane, group))]
            total += (dc.lengths[size] + size).sum(axis=1)
        starts = np.concatenate([[0], np.cumsum(total)])
        if not 0 <= 8 * len(self.data) - starts[-1] < 8:
            raise Unsuitable("another number of bits")
        self.starts, self.bits = starts, np.unpackbits(self.data)

    def units(self, touched: list[np.ndarray]) -> np.ndarray:
        """The indices of the MCUs with a touched block (rows, columns) bool, and of the one after each."""
        changed = np.zeros(self.rows * self.columns, bool)
        for blocks, group in zip(touched, self.groups, strict=True):
            shape = self.rows * group[0], self.columns * group[1]
            padded = np.pad(blocks, [(0, shape[i] - blocks.shape[i]) for i in (0, 1)])
            changed |= self._units(padded, group).any(axis=1)
        changed[1:] |= changed[:-1].copy()  # the DC coefficient of the next one is stored as a difference
        return np.flatnonzero(changed)

    def holds(self, planes: list[np.ndarray], units: np.ndarray) -> bool:
        """Whether the bits of some MCUs, or a sample if they are many, are those of `planes`."""
        units = units[:: len(units) // MAX_COMPARED + 1]
        old = [self.bits[start:stop] for start, stop, _ in self._runs(units)]
        try:
            return np.array_equal(self._encode(planes, units)[0], np.concatenate(old))
        except Unsuitable:
            return False

    def replace(self, planes: list[np.ndarray], units: np.ndarray) -> bytes:
        """The scan's bytes for `planes`, in which only the blocks of the MCUs `units` differ.

        Raises:
            Unsuitable: if the tables lack a needed code.
        """
        new, lengths = self._encode(planes, units)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        first = int(self.starts[units[0]]) // 8  # in bytes
        parts, done, at = [], 8 * first, 0  # done in bits of the old scan, at in units
        for start, stop, count in self._runs(units):
            parts += [self.bits[done:start], new[ends[at] : ends[at + count]]]
            done, at = stop, at + count
        parts.append(self.bits[done : self.starts[-1]])
        bits = np.concatenate([*parts, np.ones(-sum(map(len, parts)) % 8, np.uint8)])
        data = self.data[:first].tobytes() + np.packbits(bits).tobytes()
        return data.replace(b"\xff", b"\xff\0")

    def _runs(self, units: np.ndarray) -> list[tuple[int, int, int]]:
        """The first bit, the end and the number of MCUs of each run of successive MCUs."""
        runs = np.split(units, np.flatnonzero(np.diff(units) != 1) + 1)
        return [(self.starts[run[0]], self.starts[run[-1] + 1], len(run)) for run in runs]

    def _units(self, blocks: np.ndarray, group: tuple[int, int]) -> np.ndarray:
        """One value per block of a component, as (MCUs, blocks per MCU)."""
        parts = blocks.reshape(self.rows, group[0], self.columns, group[1]).swapaxes(1, 2)
        return parts.reshape(self.rows * self.columns, -1)

    def _differences(self, plane: np.ndarray, group: tuple[int, int]) -> np.ndarray:
        """The DC coefficients as stored, each less the one before, (MCUs, blocks per MCU)."""
        values = self._units(plane[:, :, 0], group).astype(np.int64)
        return np.diff(values.reshape(-1), prepend=0).reshape(values.shape)

    def _encode(self, planes: list[np.ndarray], units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bits of some MCUs, one per byte, and the number of bits of each."""
        slots = sum(v * h for v, h in self.groups)
        first = 0
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # place in the scan, code, length

        def add_symbols(place: np.ndarray, table: Huffman, symbol: np.ndarray, value: np.ndarray) -> None:
            """Add symbols, each followed by the number of bits of its value that its lower half states."""
            size, lengths = symbol & 15, table.lengths[symbol]
            if not lengths.all():
                raise Unsuitable("a symbol without a code")
            extra = np.where(value < 0, value + (1 << size) - 1, value)
            found.append((place, table.codes[symbol] << size | extra, lengths + size))

        for plane, (v, h), (dc, ac) in zip(planes, self.groups, self.tables, strict=True):
            grouped = plane.reshape(self.rows, v, self.columns, h, 64)
            blocks = grouped[units // self.columns, :, units % self.columns].reshape(-1, 64)
            order = 64 * (np.arange(len(units))[:, None] * slots + first + np.arange(v * h)).reshape(-1)
            first += v * h
            difference = self._differences(plane, (v, h))[units].reshape(-1)
            add_symbols(order, dc, SIZE[np.abs(difference)], difference)
            block, place, zeros, value = ac_symbols(blocks)
            add_symbols(order[block] + place, ac, (zeros & 15) << 4 | SIZE[np.abs(value)], value)
            long = np.repeat(order[block] + place - 1, zeros >> 4)
            add_symbols(long, ac, np.full_like(long, SIXTEEN_ZEROS), np.zeros_like(long))
            last = np.zeros(len(blocks), np.int64)
            last[block] = place
            short = order[last != 63] + 63
            add_symbols(short, ac, np.full_like(short, END_OF_BLOCK), np.zeros_like(short))
        place, code, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
        sort = np.argsort(place, kind="stable")
        place, code, length = place[sort], code[sort], length[sort]
        ends = np.cumsum(length)
        shift = np.repeat(ends, length) - 1 - np.arange(ends[-1])
        bits = (np.repeat(code, length) >> shift & 1).astype(np.uint8)
        return bits, np.bincount(place // (64 * slots), length, len(units)).astype(np.int64)
