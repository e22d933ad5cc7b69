"""The statistics of many tensors in one compiled pass over memory (needs numba, the `compiled` extra).

The tensors come as a table of addresses, so that one call measures a whole optimizer, with the
interpreter lock let go. Each tensor is cut into leaves of 2,048 elements that stay in the first caches: one
loop over a leaf divides while the memory delivers, others add up what is in the cache by then. In
one loop there are more sums than registers, which takes twice the time. Sums of 256 elements are float32 and
of those float64; a leaf whose squares leave the range of float32 is added up again in float64.

Maxima and minima are those of the elements' bits, which order as the numbers do and let no NaN get lost.
Loading this module compiles, or loads what an earlier process compiled: see `compiled`.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined, unused-ignore]
from numba.extending import intrinsic

LEAF = 2048
SHORT = 256
"""Elements that are added up in float32: 32 to a lane, so that the error of a norm stays under 1e-6."""

F32, BF16, F16 = 0, 1, 2
"""How the elements at an address are stored."""

(
    GRAD, GRAD_MAX, FIRST, SECOND, SECOND_MIN, SECOND_MAX, PARAM, PARAM_MAX,
    UPDATE, RMS_T, DOT, SMALL, ZEROS, NONFINITE, LOST,
) = range(15)  # fmt: skip
"""Columns of the result: in the order of `Sums.COLUMNS`, behind them the counts."""
COLUMNS = 15

_MAGNITUDE = np.int32(0x7FFFFFFF)
_LEAST = np.float32(1e-30)
"""Mean square below which squares of float32 values lose bits."""
_MOST = np.float32(3e38)
_LEAST_EPSILON = np.float32(1e-11)
"""Below it, the product of two denominators may leave the range of float32."""
_MOST_SECOND = np.float32(1e37).view(np.int32)
_SCALE = np.float32(2.0**112)
"""Moves the exponent of a float16 into that of a float32."""

# Sums may be added up in any order; NaN and infinities keep their meaning.
_compiled: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


def _pointer_to(element: Any) -> Any:
    """A function that takes an address as a pointer."""

    @intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
    def pointer(typing: Any, address: Any) -> Any:
        kind = types.CPointer(element)  # type: ignore[no-untyped-call, unused-ignore]

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), build

    return pointer


_floats_at = _pointer_to(types.float32)
_halves_at = _pointer_to(types.uint16)


@_compiled
def _leaf(address, kind, start, n, scratch):  # type: ignore[no-untyped-def]
    """`n` elements from `start` on as float32: the memory itself, or converted into `scratch`."""
    if kind == F32:
        return carray(_floats_at(address + 4 * start), (n,))
    halves = carray(_halves_at(address + 2 * start), (n,))
    out = scratch[:n]
    if kind == BF16:
        for j in range(n):
            out[j] = np.int32(np.int32(halves[j]) << np.int32(16)).view(np.float32)
    else:
        for j in range(n):
            half = np.int32(halves[j])
            magnitude = np.int32((half & np.int32(0x7FFF)) << np.int32(13)).view(np.float32) * _SCALE
            if (half & np.int32(0x7C00)) == np.int32(0x7C00):  # an infinity or NaN
                bits = np.int32(np.int32(0x7F800000) | ((half & np.int32(0x3FF)) << np.int32(13)))
                magnitude = bits.view(np.float32)
            out[j] = -magnitude if half & np.int32(0x8000) else magnitude
    return out


@_compiled
def _ordered(bits):  # type: ignore[no-untyped-def]
    """Bits of a float32 as an integer that orders as the numbers do, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE))


@_compiled
def _number(bits):  # type: ignore[no-untyped-def]
    """The float32 that some bits are."""
    return np.int32(bits).view(np.float32)


@_compiled
def _quotients(g, m, v, p, numbers):  # type: ignore[no-untyped-def]
    """Sums of squares of update and g / max(sqrt(v̂), ε), and how many sqrt(v̂) lie below 10 ε.

    Both quotients come from one division, 1 / (wide x kept), which must stay in the range of float32.
    """
    of_grad, of_first, of_param, root, epsilon, floor, low = numbers
    updates = ratios = np.float64(0)
    small = np.int32(0)
    for start in range(0, g.size, SHORT):
        some_updates = some_ratios = np.float32(0)
        stop = min(start + SHORT, g.size)
        # Slices: numba wraps an index that might be negative, at each access.
        gs, ms, vs, ps = g[start:stop], m[start:stop], v[start:stop], p[start:stop]
        for j in range(gs.size):
            r = np.sqrt(vs[j]) * root
            wide = r + epsilon
            kept = floor if r < floor else r
            inverse = np.float32(1) / (wide * kept)
            u = (of_grad * gs[j] + of_first * ms[j]) * kept * inverse + of_param * ps[j]
            t = gs[j] * wide * inverse
            some_updates += u * u
            some_ratios += t * t
            small = np.int32(small + np.int32(r < low))
        updates += some_updates
        ratios += some_ratios
    return updates, ratios, small


@_compiled
def _sums(g, m, v, p):  # type: ignore[no-untyped-def]
    grads = firsts = seconds = params = dots = np.float64(0)
    for start in range(0, g.size, SHORT):
        g2 = m2 = v1 = p2 = gm = np.float32(0)
        stop = min(start + SHORT, g.size)
        gs, ms, vs, ps = g[start:stop], m[start:stop], v[start:stop], p[start:stop]
        for j in range(gs.size):
            g2 += gs[j] * gs[j]
            m2 += ms[j] * ms[j]
            v1 += vs[j]
            p2 += ps[j] * ps[j]
            gm += gs[j] * ms[j]
        grads += g2
        firsts += m2
        seconds += v1
        params += p2
        dots += gm
    return grads, firsts, seconds, params, dots


@_compiled
def _peaks(g, v, p):  # type: ignore[no-untyped-def]
    """Bits of max |g| and max |p|, of the extremes of v (if none is negative), and the zeros of g."""
    g_max = p_max = np.int32(0)
    v_min = v_max = np.float32(v[0]).view(np.int32)
    zeros = np.int32(0)
    for j in range(g.size):
        bits = np.int32(np.float32(g[j]).view(np.int32) & _MAGNITUDE)
        g_max = max(g_max, bits)
        zeros = np.int32(zeros + np.int32(bits == 0))
        p_max = max(p_max, np.int32(np.float32(p[j]).view(np.int32) & _MAGNITUDE))
        order = np.float32(v[j]).view(np.int32)
        v_min = min(v_min, order)
        v_max = max(v_max, order)
    return g_max, p_max, v_min, v_max, zeros


@_compiled
def _extremes(v):  # type: ignore[no-untyped-def]
    """The smallest and the largest element where some are negative, in the order of `_ordered`."""
    low = high = _ordered(np.float32(v[0]).view(np.int32))
    for j in range(v.size):
        order = _ordered(np.float32(v[j]).view(np.int32))
        low = min(low, order)
        high = max(high, order)
    return low, high


@_compiled
def _is_zero(x):  # type: ignore[no-untyped-def]
    return np.count_nonzero(x) == 0


@_compiled
def _exactly(g, m, v, p, numbers, sums):  # type: ignore[no-untyped-def]
    """Add all sums of a leaf in float64, and count what is not finite of the gradient and of the moments."""
    of_grad, of_first, of_param, root, epsilon, floor, _ = numbers
    for j in range(g.size):
        x, y, w, q = np.float64(g[j]), np.float64(m[j]), np.float64(v[j]), np.float64(p[j])
        r = np.sqrt(w) * root
        # What the update does not depend on may well be infinite.
        u = (of_grad * x if of_grad != 0 else 0.0) + (of_first * y if of_first != 0 else 0.0)
        u = u / (r + epsilon) + (of_param * q if of_param != 0 else 0.0)
        t = x / (np.float64(floor) if r < floor else r)
        sums[GRAD] += x * x
        sums[FIRST] += y * y
        sums[SECOND] += w
        sums[PARAM] += q * q
        sums[UPDATE] += u * u
        sums[RMS_T] += t * t
        sums[DOT] += x * y
        sums[NONFINITE] += not np.isfinite(x)
        sums[LOST] += (not np.isfinite(y)) + (not np.isfinite(w))


@_compiled
def _is_off(total, n, zero):  # type: ignore[no-untyped-def]
    """Whether a float32 sum of squares is not to be trusted."""
    return not (total < _MOST) or (total < _LEAST * n and not zero)


@njit(
    "void(int64[:,::1], int64[::1], int64[::1], int64[:,::1], float32[:,::1], float64[:,::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def measure(addresses, sizes, row_of, kinds, numbers, out):  # type: ignore[no-untyped-def]
    """Fill `out` f8[T, COLUMNS] with the sums, peaks and counts of T tensors.

    `addresses` i8[4, T]: of gradient, first and second moment and parameter; address 0 stands for zeros, and
    in place of a second moment for ones. `sizes` i8[T]: elements. `row_of` i8[T]: which row of the next two
    a tensor has. `kinds` i8[R, 4]. `numbers` f4[R, 7]: the update is (n0 g + n1 m) / (n3 sqrt(v) + n4) +
    n2 p; the floor of sqrt(v̂) in rms_t is n5, and n6 is 10 ε.
    """
    scratch = np.zeros((4, LEAF), np.float32)
    nothing = np.zeros(LEAF, np.float32)
    ones = np.ones(LEAF, np.float32)
    for i in range(sizes.size):
        row = out[i]
        row[:] = 0.0
        common = row_of[i]
        of = (
            numbers[common, 0], numbers[common, 1], numbers[common, 2], numbers[common, 3],
            numbers[common, 4], numbers[common, 5], numbers[common, 6],
        )  # fmt: skip
        g_top = p_top = np.int32(0)
        v_low = _MAGNITUDE
        v_top = np.int32(-_MAGNITUDE - 1)
        at_g, at_m, at_v, at_p = addresses[0, i], addresses[1, i], addresses[2, i], addresses[3, i]
        for start in range(0, sizes[i], LEAF):
            n = min(LEAF, sizes[i] - start)
            g = _leaf(at_g, kinds[common, 0], start, n, scratch[0]) if at_g != 0 else nothing[:n]
            m = _leaf(at_m, kinds[common, 1], start, n, scratch[1]) if at_m != 0 else nothing[:n]
            v = _leaf(at_v, kinds[common, 2], start, n, scratch[2]) if at_v != 0 else ones[:n]
            p = _leaf(at_p, kinds[common, 3], start, n, scratch[3]) if at_p != 0 else nothing[:n]
            updates, ratios, small = _quotients(g, m, v, p, of)
            grads, firsts, seconds, params, dots = _sums(g, m, v, p)
            g_max, p_max, v_min, v_max, zeros = _peaks(g, v, p)
            if v_min < 0:
                v_min, v_max = _extremes(v)
            g_top, p_top = max(g_top, g_max), max(p_top, p_max)
            v_low, v_top = min(v_low, v_min), max(v_top, v_max)
            row[ZEROS] += zeros
            row[SMALL] += small
            no_first = firsts == 0 and _is_zero(m)
            still = g_max == 0 and no_first and (of[2] == 0 or p_max == 0)
            if (
                not (of[5] >= _LEAST_EPSILON)
                or v_max > _MOST_SECOND
                or _is_off(grads, n, g_max == 0)
                or _is_off(firsts, n, no_first)
                or _is_off(params, n, p_max == 0)
                or _is_off(updates, n, still)
                or _is_off(ratios, n, g_max == 0)
                or not (seconds < _MOST)
            ):
                _exactly(g, m, v, p, of, row)
            else:
                row[GRAD] += grads
                row[FIRST] += firsts
                row[SECOND] += seconds
                row[PARAM] += params
                row[UPDATE] += updates
                row[RMS_T] += ratios
                row[DOT] += dots
        row[GRAD_MAX], row[PARAM_MAX] = _number(g_top), _number(p_top)
        if np.isnan(row[SECOND]):  # bits of a NaN order at either end
            row[SECOND_MIN] = row[SECOND_MAX] = np.nan
        else:
            row[SECOND_MIN] = _number(_ordered(v_low))
            row[SECOND_MAX] = _number(_ordered(v_top))
