"""How a kernel goes about a product of blocks: what a config says, and which ones suit a product.

Plain arithmetic, no torch and no Triton: a plan can ask for candidates anywhere. Forward and input gradient compute
tiles of ``samples`` by the side of a block, and walk the kept blocks of a block row (or column) ``depth`` wide a step.
The weight gradient computes ``depth`` columns of a block row at a time, one block or several that are neighbours among
those kept, and walks the samples ``samples`` a step.

What decides their speed on a GPU is the traffic from L2 to the multiprocessors: a tile of a by b does ab / (a + b)
flop a byte in 16 bits. And a row of few blocks is a short loop, so the time until its first block is there has to be
filled by another tile on the same multiprocessor (two programs that fit side by side) or kept short (``persistent``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = PRODUCTS = "forward", "input gradient", "weight gradient"
BYTES = {"bfloat16": 2, "float16": 2, "tf32": 4, "float32": 4}
_TEXT = re.compile(r"(\d+)x(\d+) w(\d+) s(\d+)(?: splits(\d+))?( persistent)?( descriptors)?")
_SHARED_KIB = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}  # a program; 99 elsewhere from 8.0 on
_REGISTERS = 65536  # of a multiprocessor
_FULL_RATE = 4.0e12  # flop/s of a multiprocessor on 16-bit numbers, and bytes/s to and from memory: for choosing splits
_MEMORY_RATE = 3.0e12
_LAUNCH = 3e-6


@dataclass(frozen=True)
class Config:
    """What one launch is made with; ``str`` gives what an op takes as its ``config``, :func:`parse` reads it.

    samples, depth: see above.  warps, stages: of a program; tiles that are on their way at a time.
    splits: the weight gradient's sum over samples in this many parts, which are added in order by a second kernel.
    persistent: as many programs as fit, each of which computes tile after tile and fetches for the next one while it
    writes one (not for the weight gradient).
    descriptors: tiles are fetched by the copy engine (compute capability 9.0 and up), not by the threads.
    """

    samples: int
    depth: int
    warps: int
    stages: int
    splits: int = 1
    persistent: bool = False
    descriptors: bool = False

    def __str__(self) -> str:
        words = [f"{self.samples}x{self.depth}", f"w{self.warps}", f"s{self.stages}"]
        words += [f"splits{self.splits}"] if self.splits > 1 else []
        words += ["persistent"] if self.persistent else []
        return " ".join(words + (["descriptors"] if self.descriptors else []))


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Config:
    """The config that ``str`` wrote."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(
            "config must be 'SAMPLESxDEPTH wWARPS sSTAGES', then 'splitsN', 'persistent' and 'descriptors' as needed,"
            f" got {text!r}"
        )
    sizes = [int(size or 1) for size in found.groups()[:5]]
    return Config(*sizes, persistent=found[6] is not None, descriptors=found[7] is not None)


def sides(product: str, meta: Sequence[int]) -> tuple[int, int]:
    """(of a block along what is computed, along what is summed over); of the weight gradient (R, C)."""
    r, c = meta[3], meta[4]
    return (c, r) if product == INPUT_GRADIENT else (r, c)


def check(config: Config, product: str, meta: Sequence[int], capability: tuple[int, int]) -> None:
    """Raise unless kernels can be made with it; what shared memory holds is left to the compiler."""
    side, of_weight = sides(product, meta)[1], product == WEIGHT_GRADIENT
    whole = config.depth % side == 0 if of_weight else side % max(config.depth, 1) == 0
    single = not (of_weight and config.depth > side)
    version = ".".join(map(str, capability))
    for right, rule in (
        (config.samples in (16, 32, 64, 128, 256), "16, 32, 64, 128 or 256 samples"),
        (config.depth in (16, 32, 64, 128, 256) and whole, f"a depth that goes with blocks of {side}"),
        (config.warps in (1, 2, 4, 8, 16), "1, 2, 4, 8 or 16 warps"),
        (1 <= config.stages <= 8, "1 to 8 stages"),
        (config.splits == 1 or of_weight, f"no splits for the {product}"),
        (1 <= config.splits <= 64, "1 to 64 splits"),
        (not (config.persistent and of_weight), f"programs of one tile for the {product}"),
        (not config.descriptors or capability >= (9, 0), f"no descriptors on compute capability {version}"),
        (not config.descriptors or single, f"one block a program for the {product} with descriptors"),
    ):
        if not right:
            raise ValueError(f"config must have {rule}, got {str(config)!r}")


def shared_bytes(config: Config, product: str, dtype: str, meta: Sequence[int]) -> int:
    """Of one program, at most: tiles on their way, what is written while others are, and what the compiler adds."""
    side = sides(product, meta)[0]
    wide = config.samples if product != WEIGHT_GRADIENT else config.depth
    deep = config.depth if product != WEIGHT_GRADIENT else config.samples
    written = wide * side * BYTES[dtype] // 2 if config.persistent else 0
    return config.stages * (wide + side) * deep * BYTES[dtype] + written + 1024


def shared_limit(capability: tuple[int, int]) -> int:
    return (_SHARED_KIB.get(capability, 99) if capability >= (8, 0) else 64) << 10


def resident(config: Config, product: str, dtype: str, meta: Sequence[int], capability: tuple[int, int]) -> int:
    """How many programs fit on a multiprocessor at a time, estimated: a guess of the registers beside the sums."""
    wide = config.samples if product != WEIGHT_GRADIENT else config.depth
    threads = config.warps * 32
    registers = min(wide * sides(product, meta)[0] // threads + 90, 255)
    by_memory = shared_limit(capability) // (shared_bytes(config, product, dtype, meta) + 1024)
    return max(min(by_memory, _REGISTERS // (registers * threads)), 1)


def default(product: str, dtype: object, meta: Sequence[int], n: int, sms: int, capability: tuple[int, int]) -> Config:
    """The config that an op goes by where none is named: by shape alone, the same each time.

    product: "forward", "input gradient" or "weight gradient".  dtype: "bfloat16", "float16", "tf32" or "float32" (which
    matrix units don't take), or such a dtype of torch.  n: samples.  sms: multiprocessors of the GPU.
    """
    return candidates(product, dtype, meta, n, sms, capability)[0]


def candidates(
    product: str, dtype: object, meta: Sequence[int], n: int, sms: int, capability: tuple[int, int]
) -> tuple[Config, ...]:
    """At most six configs worth timing, the default first; all fit the shared memory of the GPU."""
    name = str(dtype).removeprefix("torch.")
    if product not in PRODUCTS:
        raise ValueError(f"product must be {', '.join(map(repr, PRODUCTS))}, got {product!r}")
    if name not in BYTES:
        raise ValueError(f"dtype must be {', '.join(BYTES)}, got {name}")
    return _candidates(product, name, tuple(meta), n, sms, tuple(capability))


@functools.lru_cache(maxsize=1024)
def _candidates(
    product: str, dtype: str, meta: tuple[int, ...], n: int, sms: int, capability: tuple[int, int]
) -> tuple[Config, ...]:
    find = _of_weight if product == WEIGHT_GRADIENT else _of_samples
    found: list[Config] = []
    for config in find(product, dtype, meta, n, sms, capability):
        fitted = _fitted(config, product, dtype, meta, capability)
        if fitted not in found:
            found.append(fitted)
    return tuple(found[:6])


def _fitted(config: Config, product: str, dtype: str, meta: tuple[int, ...], capability: tuple[int, int]) -> Config:
    """With as many stages as there is memory for, then with smaller tiles."""
    while shared_bytes(config, product, dtype, meta) > shared_limit(capability):
        if config.stages > 2:
            config = replace(config, stages=config.stages - 1)
        else:
            config = replace(config, samples=config.samples // 2)
    return config


def _asynchronous(capability: tuple[int, int]) -> bool:
    """Whether matrix units read their factors from shared memory, so that registers hold little beside the sums."""
    return (9, 0) <= capability < (12, 0)


def _warps(sums: int, dtype: str) -> int:
    """So many that a thread holds 128 sums at most; half of that where no matrix unit brings the factors."""
    return 8 if sums > (16384 if BYTES[dtype] == 2 else 4096) else 4


def _of_samples(
    product: str, dtype: str, meta: tuple[int, ...], n: int, sms: int, capability: tuple[int, int]
) -> Iterator[Config]:
    side, inner = sides(product, meta)
    outers = (meta[0] if product == FORWARD else meta[1]) // side
    asynchronous = _asynchronous(capability)
    hopper = (9, 0) <= capability < (10, 0)
    largest = {2: 256 if hopper or side < 128 else 128, 4: 128 if dtype == "tf32" else 64}[BYTES[dtype]]
    depth = min(inner, 64 if asynchronous and BYTES[dtype] == 2 else 32)

    def tile(samples: int, stages: int = 0, **others: int) -> Config:
        """Without ``stages``: as many as two of them that fit side by side can have."""
        config = Config(samples, depth, others.pop("warps", _warps(samples * side, dtype)), stages or 5, **others)
        while not stages and config.stages > 2 and resident(config, product, dtype, meta, capability) < 2:
            config = replace(config, stages=config.stages - 1)
        return config

    if n <= 64:
        samples = max(16 if capability < (9, 0) else 64, 1 << max(n - 1, 0).bit_length())
        yield tile(samples, 4)
        yield tile(samples, 6)
        return
    samples = largest
    while samples > 64 and -(-n // samples) * max(outers, 1) < sms:
        samples //= 2
    fewer = max(samples // 2, 64)
    if BYTES[dtype] == 4:
        yield tile(samples, 3)
        yield tile(samples, 2)
        yield tile(fewer, 3)
    elif samples * side > 16384:  # alone on its multiprocessor: the next tile has to begin at once
        yield tile(samples, 4, persistent=True)
        yield tile(samples, 4)
        yield tile(fewer)
        yield tile(fewer, persistent=True)
        if asynchronous:
            yield tile(samples, 4, persistent=True, descriptors=True)
            yield tile(fewer, descriptors=True)
    else:
        wide = capability < (10, 0) and side * depth >= 2048  # then each thread of 8 warps fetches 16 bytes of weights
        yield tile(samples)
        if wide:
            yield tile(samples, warps=8)
        yield tile(fewer)
        if hopper and wide:
            yield tile(samples, 4, warps=8, persistent=True)
        elif capability[0] != 10 or side < 128:  # 10.0 spills its small tiles of large blocks
            yield tile(fewer, persistent=True)
        if asynchronous:
            yield tile(samples, descriptors=True)
            yield tile(fewer, descriptors=True)


def _of_weight(
    product: str, dtype: str, meta: tuple[int, ...], n: int, sms: int, capability: tuple[int, int]
) -> Iterator[Config]:
    r, c = meta[3], meta[4]
    step = 64 if _asynchronous(capability) and BYTES[dtype] == 2 else 32

    def tile(depth: int, stages: int, splits: int = 0, **others: bool) -> Config:
        config = Config(step, depth, _warps(depth * r, dtype), stages, **others)
        return replace(config, splits=splits or _splits(config, dtype, meta, n, sms, capability))

    if BYTES[dtype] == 4:
        yield tile(c, 3)
        yield tile(c, 2, 1)
        return
    alone = max(c, 64)
    several = 256 if r == 32 else 128
    first = tile(several, 3)
    yield first
    yield tile(several, 4)
    yield tile(several, 3, 1 if first.splits > 1 else 2)
    yield tile(alone, 4) if alone < several else tile(256, 3)
    yield tile(256 if r == 64 else 128, 3)
    if alone == c and _asynchronous(capability):
        yield tile(c, 3, descriptors=True)


def _splits(config: Config, dtype: str, meta: tuple[int, ...], n: int, sms: int, capability: tuple[int, int]) -> int:
    """As many parts as the estimated time is shortest with: even shares for all multiprocessors against the traffic."""
    rows, _, kept, r, c = meta
    blocks = kept // (r * c)
    group = config.depth // c
    programs = blocks if group == 1 else -(-blocks // group) + rows // r // 2
    work = 2 * n * r * config.depth / (_FULL_RATE * 2 / BYTES[dtype])

    def seconds(splits: int) -> float:
        rounds = -(-programs * splits // sms)
        return rounds * work / splits + (splits > 1) * (2 * splits * kept * 4 / _MEMORY_RATE + _LAUNCH)

    most = max(min(8, n // (4 * config.samples)), 1)
    return min(range(1, most + 1), key=seconds)
