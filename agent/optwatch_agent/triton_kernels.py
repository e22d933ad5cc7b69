"""The statistics of many tensors of a CUDA device in one Triton kernel that reads each of them once.

The tensors come as a table of addresses. Each program adds up a chunk of one tensor in float64, a second
kernel the chunks of each tensor, in fixed order and without atomics. Only `fused` loads this module: it needs
Triton, which comes with torch where that is built for CUDA.
"""

import triton
import triton.language as tl

CHUNK = 1 << 15
"""Elements that one program adds up."""
BLOCK = 512

ABSENT, F32, BF16, F16 = range(4)
"""How the elements at an address are stored."""

COLUMNS = (
    *("grad", "first", "second", "param", "update", "rms_t", "dot", "eps"),
    *("grad_zeros", "grad_nonfinite", "moments_nonfinite"),
    *("grad_max", "param_max", "second_max", "second_min"),
)
"""The rows of the result; the minimum as the maximum of the opposites."""
SUMS = 11
"""How many of them are added up."""
NUMBERS = 9
"""The coefficients of `quotients.Form`; what makes sqrt(v̂) of sqrt(v), its floor in rms_t, and 10 ε."""


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _read(address, kind, at, there):  # type: ignore[no-untyped-def]
    """Elements as float32; zeros where there are none. Not as float64 yet: what first uses the elements waits
    for them, and all four tensors are to be under way by then."""
    x = tl.zeros(at.shape, tl.float32)
    if kind == 1:
        x = tl.load(address.to(tl.pointer_type(tl.float32)) + at, mask=there, other=0.0)
    elif kind == 2:
        x = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + at, mask=there, other=0.0).to(tl.float32)
    elif kind == 3:
        x = tl.load(address.to(tl.pointer_type(tl.float16)) + at, mask=there, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["tensors", "chunks", "itself"])  # type: ignore[misc, untyped-decorator, unused-ignore]
def chunks_of(  # type: ignore[no-untyped-def]
    addresses,
    kinds,
    sizes,
    numbers,
    owners,
    starts,
    out,
    tensors,
    chunks,
    itself,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fill `out` f8[COLUMNS, chunks] with the sums and maxima of each chunk.

    `addresses` i8[tensors, 4], `kinds` i4[tensors, 4]: of gradient, first and second moment and parameter.
    `sizes` i8[tensors]; `numbers` f8[NUMBERS, tensors]; `owners` i4[chunks]: the tensor of each chunk;
    `starts` i8[chunks]: its first element. `itself`: whether the root is the second moment itself.
    """
    chunk = tl.program_id(0)
    i = tl.load(owners + chunk)
    start = tl.load(starts + chunk)
    end = tl.minimum(start + CHUNK, tl.load(sizes + i))
    g_at, m_at = tl.load(addresses + 4 * i), tl.load(addresses + 4 * i + 1)
    v_at, p_at = tl.load(addresses + 4 * i + 2), tl.load(addresses + 4 * i + 3)
    g_kind, m_kind = tl.load(kinds + 4 * i), tl.load(kinds + 4 * i + 1)
    v_kind, p_kind = tl.load(kinds + 4 * i + 2), tl.load(kinds + 4 * i + 3)
    of_grad, of_first = tl.load(numbers + i), tl.load(numbers + tensors + i)
    inside, of_root = tl.load(numbers + 2 * tensors + i), tl.load(numbers + 3 * tensors + i)
    epsilon, of_param = tl.load(numbers + 4 * tensors + i), tl.load(numbers + 5 * tensors + i)
    hat_of_root, floor = tl.load(numbers + 6 * tensors + i), tl.load(numbers + 7 * tensors + i)
    low = tl.load(numbers + 8 * tensors + i)
    grads = tl.zeros((BLOCK,), tl.float64)
    firsts = tl.zeros((BLOCK,), tl.float64)
    seconds = tl.zeros((BLOCK,), tl.float64)
    params = tl.zeros((BLOCK,), tl.float64)
    updates = tl.zeros((BLOCK,), tl.float64)
    ratios = tl.zeros((BLOCK,), tl.float64)
    dots = tl.zeros((BLOCK,), tl.float64)
    small = tl.zeros((BLOCK,), tl.int32)
    zeros = tl.zeros((BLOCK,), tl.int32)
    lost = tl.zeros((BLOCK,), tl.int32)
    moments_lost = tl.zeros((BLOCK,), tl.int32)
    g_max = tl.zeros((BLOCK,), tl.float64)
    p_max = tl.zeros((BLOCK,), tl.float64)
    v_max = tl.full((BLOCK,), float("-inf"), tl.float64)
    v_min = tl.full((BLOCK,), float("-inf"), tl.float64)
    for block in range(start, end, BLOCK):
        at = block + tl.arange(0, BLOCK)
        there = at < end
        g_read, m_read = _read(g_at, g_kind, at, there), _read(m_at, m_kind, at, there)
        v_read, p_read = _read(v_at, v_kind, at, there), _read(p_at, p_kind, at, there)
        g, m = g_read.to(tl.float64), m_read.to(tl.float64)
        v, p = v_read.to(tl.float64), p_read.to(tl.float64)
        root = tl.where(itself != 0, v, tl.sqrt(v))
        hat = root * hat_of_root
        # Of an element that is not there all is 0, also where the denominator is.
        denominator = tl.where(there, root * of_root + epsilon + inside, 1.0)
        update = (of_grad * g + of_first * m + inside * p) / denominator + of_param * p
        kept = tl.where(hat < floor, floor, hat)  # unlike the larger of both it keeps a NaN
        ratio = g / kept
        grads += g * g
        firsts += m * m
        seconds += v
        params += p * p
        updates += update * update
        ratios += ratio * ratio
        dots += g * m
        small += ((hat < low) & there).to(tl.int32)
        zeros += ((g == 0.0) & there).to(tl.int32)
        lost += ((g - g) != 0.0).to(tl.int32)
        moments_lost += ((m - m) != 0.0).to(tl.int32) + ((v - v) != 0.0).to(tl.int32)
        g_max = tl.maximum(g_max, tl.abs(g))
        p_max = tl.maximum(p_max, tl.abs(p))
        v_max = tl.maximum(v_max, tl.where(there, v, float("-inf")))
        v_min = tl.maximum(v_min, tl.where(there, -v, float("-inf")))
    at = out + chunk
    tl.store(at, tl.sum(grads))
    tl.store(at + chunks, tl.sum(firsts))
    tl.store(at + 2 * chunks, tl.sum(seconds))
    tl.store(at + 3 * chunks, tl.sum(params))
    tl.store(at + 4 * chunks, tl.sum(updates))
    tl.store(at + 5 * chunks, tl.sum(ratios))
    tl.store(at + 6 * chunks, tl.sum(dots))
    tl.store(at + 7 * chunks, tl.sum(small).to(tl.float64))
    tl.store(at + 8 * chunks, tl.sum(zeros).to(tl.float64))
    tl.store(at + 9 * chunks, tl.sum(lost).to(tl.float64))
    tl.store(at + 10 * chunks, tl.sum(moments_lost).to(tl.float64))
    tl.store(at + 11 * chunks, tl.max(g_max))
    tl.store(at + 12 * chunks, tl.max(p_max))
    tl.store(at + 13 * chunks, tl.max(v_max))
    tl.store(at + 14 * chunks, tl.max(v_min))


@triton.jit(do_not_specialize=["tensors", "chunks"])  # type: ignore[misc, untyped-decorator, unused-ignore]
def tensors_of(  # type: ignore[no-untyped-def]
    of_chunks, ends, out, tensors, chunks, SUMS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """Fill `out` f8[COLUMNS, tensors] from `of_chunks` f8[COLUMNS, chunks]; a program for each tensor.

    `ends` i4[tensors + 1]: the first chunk of each tensor, and behind it that of the next.
    """
    i = tl.program_id(0)
    first, end = tl.load(ends + i), tl.load(ends + i + 1)
    columns = tl.arange(0, 16).to(tl.int64)  # a power of two
    added = tl.zeros((16, BLOCK), tl.float64)
    highest = tl.full((16, BLOCK), float("-inf"), tl.float64)
    for block in range(first, end, BLOCK):
        at = block + tl.arange(0, BLOCK)
        there = (columns < COLUMNS)[:, None] & (at < end)[None, :]
        of_block = tl.load(of_chunks + columns[:, None] * chunks + at[None, :], mask=there, other=0.0)
        added += of_block
        highest = tl.maximum(highest, tl.where(there, of_block, float("-inf")))
    found = tl.where(columns < SUMS, tl.sum(added, axis=1), tl.max(highest, axis=1))
    tl.store(out + columns * tensors + i, found, mask=columns < COLUMNS)
