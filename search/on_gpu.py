"""Proposals for the exact search from a GPU: products of float16, with a bound on their error.

`search.exact` proves and refines them on the CPU as it does those of faiss, with the same results.
Here the descriptors are rounded to float16 and multiplied into float32 on the device of the Keras
backend; the columns of a block of scores are cut into strips, and only the strips with the greatest
maxima are sorted.
"""

import functools
from dataclasses import dataclass

import numpy as np

from network.devices import list_gpus
from network.loading import loading_keras
from utils import say

with loading_keras():
    import keras
    from keras import ops

QUERY_ROWS = 2048  # of a product
INDEX_ROWS = 65_536  # of a product: 537 MB of scores
STRIP = 32  # columns; 128 of 2048 strips are kept, so that maxima and kept columns are alike many
FEW = 4096  # rows that are float64 at a time
LARGEST = 14  # the largest number of a block is scaled to 2^14 up to 2^15; float16 ends at 65504
# The bound supposes numbers whose squares are far from the ends of float32.
TRUSTED = (1e-12, 1e12)
EPSILON = 2.0**-24  # relative error of one operation in float32


@dataclass(frozen=True)
class Halves:
    """Descriptors rounded to float16, times a power of two."""

    rows: np.ndarray  # (n, d) float16
    scale: float  # the power of two
    norms: np.ndarray  # (n,) float64, length of each row / scale
    residuals: np.ndarray  # (n,) float64, at least row / scale's distance from the descriptor


@functools.cache
def find_proposer():
    """Gives `propose`, or None without a GPU that can do it."""
    if not list_gpus():
        return None
    vectors = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    if proposals := propose(vectors, vectors, 100):
        positions, rough, noise = proposals
        difference = vectors[positions].astype(np.float64) - vectors[:, None]
        if (np.abs(rough - np.vecdot(difference, difference)) <= noise[:, None]).all():
            return propose
    say("the search stays on the CPU: the GPU does not multiply as expected")
    return None


def propose(queries, index, num_proposed):
    """Proposes the nearest index rows of each query, as `exact._propose` does.

    Descriptors may be float16, too. Rows that are not proposed are farther than the last one less
    noise. None where numbers or device do not allow it: faiss proposes.
    """
    try:
        return _propose(queries, index, num_proposed)
    except Exception as error:  # each backend has its own, for lack of memory first of all
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        say(f"the search goes on without the GPU: {reason}")
        return None


def _propose(queries, index, num_proposed):
    asked = to_halves(queries)
    if asked is None:
        return None
    blocks = [slice(begin, begin + QUERY_ROWS) for begin in range(0, len(queries), QUERY_ROWS)]
    # Zeros fill the last one up, since every other shape is compiled anew.
    rows = np.pad(asked.rows, ((0, -len(queries) % QUERY_ROWS), (0, 0)))
    shares = [ops.convert_to_tensor(rows[block]) for block in blocks]
    best = [None] * len(shares)
    longest = worst = 0.0
    for begin in range(0, len(index), INDEX_ROWS):
        block = to_halves(index[begin : begin + INDEX_ROWS])
        if block is None:
            return None
        longest = max(longest, block.norms.max())
        worst = max(worst, block.residuals.max())
        columns, penalties = _put_on_device(block)
        factor = np.float32(2 / (asked.scale * block.scale))
        for number, share in enumerate(shares):
            scores = multiply(share, columns) * factor - penalties
            best[number] = keep_best(best[number], scores, begin, num_proposed)
    scores, positions = (
        np.concatenate([ops.convert_to_numpy(pair[part]) for pair in best])[: len(queries)]
        for part in (0, 1)
    )
    rough = (asked.norms[:, None] ** 2 - scores).astype(np.float32)
    noise = bound_noise(asked, longest, worst, rough[:, -1], queries.shape[1])
    return positions.astype(np.int64), rough, noise


def to_halves(vectors):
    """Rounds descriptors to `Halves`; None where the bound would not hold for them."""
    starts = range(0, len(vectors), FEW)
    largest = float(np.max([np.abs(vectors[begin : begin + FEW]).max() for begin in starts]))
    if largest and not TRUSTED[0] < largest < TRUSTED[1]:  # or not a number
        return None
    scale = 2.0 ** (LARGEST + 1 - np.frexp(largest)[1]) if largest else 1.0
    rows = np.empty(vectors.shape, np.float16)
    norms, residuals = np.empty(len(vectors)), np.empty(len(vectors))
    for begin in starts:
        part = slice(begin, begin + FEW)
        exact = vectors[part].astype(np.float64) * scale
        rows[part] = exact
        rounded = rows[part].astype(np.float64)
        norms[part] = np.sqrt(np.vecdot(rounded, rounded)) / scale
        exact -= rounded
        residuals[part] = np.sqrt(np.vecdot(exact, exact)) / scale
    return Halves(rows, scale, norms, residuals * (1 + 1e-9))


def bound_noise(asked, longest, worst, last, width):
    """Bounds what rough squared distances are away from the true ones.

    Let h and k be a query and an index row as halves, D the distance of the descriptors and H that
    of the halves. By the triangle inequality |D - H| <= r, the sum of both residuals, so that
    |D^2 - H^2| <= r (2H + r). H^2 = |h|^2 + |k|^2 - 2hk is computed in float32: products of halves
    are exact there, and d sums of at most |h||k| are off by d epsilon |h||k|, twice that where the
    device cuts instead of rounding. A bound for the last proposal holds for all before; rows behind
    it are not nearer than the last one less the bound, since H^2 - 2Hr grows with H beyond r.

    Takes `Halves` of the queries, the greatest norm and residual of the index rows, the greatest
    rough squared distance of each query (q,), the number d of components; gives (q,) float32.
    """
    sums = 4 * width * EPSILON * asked.norms * longest
    sums += 16 * EPSILON * (asked.norms**2 + longest**2)  # few operations on whole numbers
    residual = asked.residuals + worst
    distance = np.sqrt(np.maximum(last, 0) + sums)
    return ((residual * (2 * distance + residual) + sums) * (1 + 1e-6)).astype(np.float32)


# --------------------------------------------------------------------------------- on the device


def _put_on_device(block):
    """Puts a block of the index on the device, in whole strips: (columns, squared norms)."""
    missing = -len(block.rows) % STRIP
    rows = ops.convert_to_tensor(np.pad(block.rows, ((0, missing), (0, 0))))
    if keras.backend.backend() != "jax":
        rows = ops.cast(rows, "float32")  # see `multiply`
    penalties = np.pad((block.norms**2).astype(np.float32), (0, missing), constant_values=np.inf)
    return ops.transpose(rows), ops.convert_to_tensor(penalties)


def multiply(queries, columns):
    """Multiplies halves, (q, d) by (d, n), into (q, n) float32, with sums in float32."""
    if keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.matmul(queries, columns, preferred_element_type=jnp.float32)
    # TensorFlow would round the sums of halves to halves. As float32 they are multiplied in TF32
    # where the GPU has it, in which halves are exact.
    return ops.matmul(ops.cast(queries, "float32"), columns)


def keep_best(best, scores, first, num_kept):
    """Keeps the greatest scores of those so far and a block's.

    The num_kept greatest of a block lie in the num_kept strips with the greatest maxima.

    Takes (scores (q, k), positions (q, k)) so far or None, those of the block (q, n), n in whole
    strips, and the position of its first row; gives (scores, positions), the greatest first.
    """
    num_strips = scores.shape[1] // STRIP
    strips = ops.reshape(scores, (-1, num_strips, STRIP))
    chosen = ops.top_k(ops.max(strips, axis=2), min(num_kept, num_strips))[1]
    values = ops.take_along_axis(strips, chosen[:, :, None], axis=1)
    places = first + chosen[:, :, None] * STRIP + ops.arange(STRIP, dtype="int32")
    values = ops.reshape(values, (len(scores), -1))
    places = ops.reshape(places, (len(scores), -1))
    if best is not None:
        values = ops.concatenate([best[0], values], axis=1)
        places = ops.concatenate([best[1], places], axis=1)
    values, order = ops.top_k(values, min(num_kept, values.shape[1]))
    return values, ops.take_along_axis(places, order, axis=1)
