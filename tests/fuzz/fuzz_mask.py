"""Random and hostile arguments for every function of fastseg.mask: a result or an error, no crash.

No part of the tests. With an extension built with -DFASTSEG_SANITIZE=ON (as tests/cuda_emulator
tells), from the root of the repository:

    FASTSEG_TEST_EXTENSION=build/emulator/_C.*.so ASAN_OPTIONS=detect_leaks=0 \\
        LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \\
        python tests/fuzz/fuzz_mask.py 100000
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
import conftest  # noqa: E402, F401  # takes FASTSEG_TEST_EXTENSION

from fastseg import mask  # noqa: E402

EXPECTED = (ValueError, TypeError, OverflowError)
ODD = (None, -1, 0, 1, 3, 2**16, 2**31, 2**32, 2**63, 2**70, 1.5, float("nan"), "a", b"1", [], {})


def sides(pick: random.Random) -> Any:
    return pick.choice([*range(9), 30, 200, *pick.sample(ODD, 1)])


def counts(pick: random.Random, area: int) -> Any:
    """Runs that fill the mask, or nearly, as a list, bytes or str; or any bytes."""
    if pick.random() < 0.2:
        return bytes(pick.choices(range(256), k=pick.randrange(9)))
    if pick.random() < 0.2:
        return "".join(pick.choices("0123456789:;<=>?@OPQRSTo", k=pick.randrange(9)))
    runs, left = [], area
    while left > 0 and len(runs) < 12:
        runs.append(pick.randint(0, left))
        left -= runs[-1]
    runs.append(left)
    if pick.random() < 0.1:
        runs[pick.randrange(len(runs))] = pick.choice(ODD)
    try:
        text = mask.frPyObjects({"size": [1, area], "counts": runs}, 1, 1)["counts"]
    except EXPECTED:
        return runs
    return pick.choice([runs, np.array(runs), text, text.decode(), tuple(runs)])


def rle(pick: random.Random, size: list[Any]) -> Any:
    if pick.random() < 0.03:
        return pick.choice(ODD)
    area = (
        size[0] * size[1] if all(isinstance(side, int) and 0 <= side < 300 for side in size) else 9
    )
    made = {"size": pick.choice([size, tuple(size)]), "counts": counts(pick, area)}
    if pick.random() < 0.03:
        del made[pick.choice(["size", "counts"])]
    return made


def rles(pick: random.Random) -> Any:
    size = [sides(pick), sides(pick)]
    some = [rle(pick, size) for _ in range(pick.randrange(5))]
    if some and pick.random() < 0.2:
        some[0] = rle(pick, [sides(pick), sides(pick)])
    return pick.choice([some, some, some, tuple(some), some[0] if some else None])


def number(pick: random.Random) -> Any:
    kinds = [pick.uniform(-9, 40), pick.randint(-9, 40), pick.gauss(0, 1e9), pick.choice(ODD)]
    return pick.choices(kinds, [10, 10, 1, 1])[0]


def numbers(pick: random.Random, many: bool = True) -> Any:
    one = [number(pick) for _ in range(pick.choice([4, 4, 4, 6, 8, 11, 2, 0]))]
    if many and pick.random() < 0.8:
        return [numbers(pick, False) for _ in range(pick.randrange(4))]
    try:
        return pick.choice([one, np.array(one, float)])
    except EXPECTED:
        return one


def boxes(pick: random.Random) -> Any:
    if pick.random() < 0.3:
        return numbers(pick)
    return [pick.randint(-9, 9), pick.randint(-9, 9), pick.randint(0, 40), pick.randint(-1, 40)]


def pair(pick: random.Random) -> tuple[Any, Any]:
    """Two RLEs, of one size more often than not."""
    size = [pick.randrange(9), pick.randrange(9)]
    return rle(pick, size), rle(pick, pick.choice([size, size, size, [sides(pick), 3]]))


def flags(pick: random.Random) -> Any:
    return [pick.choice([0, 1, True, *pick.sample(ODD, 1)]) for _ in range(pick.randrange(4))]


def pixels(pick: random.Random) -> Any:
    shape = [pick.choice([0, 1, 2, 5, 70]) for _ in range(pick.choice([2, 3, 3, 1, 4]))]
    kind = pick.choice(["?", "u1", "i2", "u4", "i8", "f4", ">i2", "S3"])
    array = np.array(np.random.default_rng(pick.getrandbits(32)).integers(0, 2, shape)).astype(kind)
    return pick.choice(
        [array, np.asfortranarray(array), array[::-1, ::2] if len(shape) > 1 else array]
    )


CALLS: dict[str, Callable[[random.Random], Any]] = {
    "encode": lambda pick: mask.encode(pixels(pick)),
    "decode": lambda pick: mask.decode(rles(pick)),
    "area": lambda pick: mask.area(rles(pick)),
    "toBbox": lambda pick: mask.toBbox(rles(pick)),
    "iou": lambda pick: mask.iou(rles(pick), rles(pick), flags(pick)),
    "iou of boxes": lambda pick: mask.iou(numbers(pick), numbers(pick), flags(pick)),
    "merge": lambda pick: mask.merge(rles(pick), pick.random() < 0.5),
    "frPyObjects": lambda pick: mask.frPyObjects(
        pick.choice([numbers, rles])(pick), sides(pick), sides(pick)
    ),
    "boundary": lambda pick: mask.boundary(rles(pick), pick.choice([0, 0.02, 0.5, 1])),
    "dilation": lambda pick: mask.boundary(rles(pick), dilation=pick.choice([1, 2, *ODD])),
    "crop": lambda pick: mask.crop(rles(pick), boxes(pick)),
    "resize": lambda pick: mask.resize(rles(pick), (sides(pick), sides(pick))),
    "flip": lambda pick: mask.flip(rles(pick), pick.choice(["horizontal", "vertical", "up"])),
    "complement": lambda pick: mask.complement(rles(pick)),
    "subtract": lambda pick: mask.subtract(*pick.choice([pair(pick), (rles(pick), rles(pick))])),
    "components": lambda pick: mask.connected_components(rles(pick), pick.choice([4, 8, 5])),
    "small": lambda pick: mask.remove_small_regions(
        rles(pick), pick.choice([3, 9]), pick.choice(["holes", "islands"])
    ),
    "to_polygons": lambda pick: mask.to_polygons(rles(pick), pick.random() < 0.5),
}


def main(count: int) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    for seed in range(count):
        pick = random.Random(seed)
        name = pick.choice(sorted(CALLS))
        try:
            CALLS[name](pick)
            outcomes[name, "result"] += 1
        except EXPECTED as error:
            outcomes[name, type(error).__name__] += 1
        except BaseException:
            print(f"seed {seed}: {name}", file=sys.stderr)
            raise
    for (name, outcome), times in sorted(outcomes.items()):
        print(f"{name:14} {outcome:14} {times}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
