"""Palettes beside the exact optimum, on tensors of ten kinds: a Markdown table.

python -m bench.exact_palettes            # 200 tensors, of 4,000 weights each

The optimum is that of an independent solver. It is computed twice: for tables of float16, as Core
ML has them, and for tables of real numbers, which no file can hold; the best float16 table is worse
than that where weights are few float16 steps wide.
"""

from __future__ import annotations

import numpy as np

from convert.weights.palette import PALETTE_BITS, Histogram, fit

SEEDS = 20  # of each kind
BOUNDS = {8: 1.0015}  # of squared error ÷ the optimum's, by bits
BOUND = 1.0005  # of other bits


def optimal_error(weight: np.ndarray, levels: int, *, float16: bool) -> float:
    """The least squared error of any `levels` values, exactly; with `float16`, of any in a LUT.

    Independent of the product: the distinct values and, for every number of clusters, the best
    last boundary by divide and conquer (the boundaries are monotone), a level of it at a time.
    """
    values, counts = np.unique(weight.astype(np.float64) + 0.0, return_counts=True)
    n = len(values)
    if n <= levels:
        return 0.0
    sums = np.zeros((3, n + 1))
    np.cumsum([counts, counts * values, counts * values**2], axis=1, out=sums[:, 1:])

    def cost(first: np.ndarray, end: np.ndarray) -> np.ndarray:
        count, total, square = sums[:, end] - sums[:, first]
        centre = total / count
        if float16:
            centre = centre.astype(np.float16).astype(np.float64)
        return square - 2 * centre * total + centre**2 * count

    best = np.r_[np.inf, cost(np.zeros(n, int), np.arange(1, n + 1))]
    for clusters in range(2, levels + 1):
        new = np.full(n + 1, np.inf)
        low, high = np.array([clusters]), np.array([n])
        left, right = np.array([clusters - 1]), np.array([n - 1])
        while len(low):
            middle = (low + high) // 2
            sizes = np.minimum(right, middle - 1) - left + 1
            starts = np.cumsum(sizes) - sizes
            of = np.repeat(np.arange(len(middle)), sizes)
            first = np.arange(sizes.sum()) - starts[of] + left[of]
            total = best[first] + cost(first, middle[of])
            new[middle] = least = np.minimum.reduceat(total, starts)
            hits = np.flatnonzero(total == least[of])
            found = first[hits[np.unique(of[hits], return_index=True)[1]]]
            a, b = low < middle, middle < high
            low, high = np.r_[low[a], middle[b] + 1], np.r_[middle[a] - 1, high[b]]
            left, right = np.r_[left[a], found[b]], np.r_[found[a], right[b]]
        best = new
    return float(best[n])


KINDS = (
    "gaussian",
    "heavy-tailed",
    "bimodal",
    "constant",
    "few values",
    "one outlier",
    "denormals",
    "signed zeros",
    "uniform",
    "log-uniform",
)


def make(kind: str, seed: int, size: int = 4000) -> np.ndarray:
    """A float16 tensor of a kind; the seed also chooses its scale."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    scale = 10.0 ** rng.uniform(-3, 0)
    normal = rng.standard_normal(size) * scale
    values = {
        "gaussian": lambda: normal,
        "heavy-tailed": lambda: np.clip(rng.standard_t(1.5, size) * scale, -6e4, 6e4),
        "bimodal": lambda: normal + np.where(rng.random(size) < 0.3, 5, -3) * scale,
        "constant": lambda: np.full(size, normal[0]),
        "few values": lambda: rng.choice(normal[: rng.integers(2, 300)], size),
        "one outlier": lambda: np.r_[normal[1:], rng.choice([-65504, -30, 1, 500, 65504])],
        "denormals": lambda: rng.standard_normal(size) * 2.0 ** rng.uniform(-20, -14),
        "signed zeros": lambda: np.where(rng.random(size) < 0.5, np.copysign(0, normal), normal),
        "uniform": lambda: rng.uniform(-scale, scale, size),
        "log-uniform": lambda: np.copysign(10 ** rng.uniform(-7, 1, size), normal),
    }[kind]()
    return values.astype(np.float16)


def main() -> None:
    """Print for each kind the largest ratios of our squared error to the optima."""
    print("| weights | tensors | ÷ float16 optimum | ÷ real-valued optimum | within the bound |")
    print("|---|---:|---:|---:|---:|")
    for kind in KINDS:
        ratios = [ratios_of(kind, seed) for seed in range(SEEDS)]
        largest = [max(values) for values in zip(*(r[:2] for r in ratios), strict=True)]
        within = sum(real <= bound for _, real, bound in ratios)
        print(
            f"| {kind} | {SEEDS} | {largest[0]:.5f} | {largest[1]:.5f} | {within} of {SEEDS} |",
            flush=True,
        )


def ratios_of(kind: str, seed: int) -> tuple[float, float, float]:
    """Our squared error ÷ the float16 optimum's and ÷ the real-valued one's; and the bound."""
    bits = PALETTE_BITS[seed % len(PALETTE_BITS)]
    weight = make(kind, seed, 1500 if bits == 8 else 4000)
    histogram = Histogram()
    histogram.add(weight)
    error = fit(histogram, bits).error(histogram)
    noise = 1e-13 * float(np.sum(weight.astype(np.float64) ** 2))
    optima = (optimal_error(weight, 1 << bits, float16=is_half) for is_half in (True, False))
    first, second = (1.0 if error <= noise else error / max(best, noise) for best in optima)
    return first, second, BOUNDS.get(bits, BOUND)


if __name__ == "__main__":
    main()
