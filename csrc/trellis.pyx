cdef extern from "trellis_cpu.h" nogil:
    ctypedef struct TrellisCost:
        f32 scale, shift, zero, other, odd, unit
    f32 TRELLIS_FAR
    f32 nearest_f32(f32)
    int trellis_planes(int)
    void trellis_search_of(const f32*, const u8*, i64, const TrellisCost*, u8*, i32*, int, int)


def level_costs(counts, f64 weight, bint labels, costs) -> None:
    """Rows of costs (trellis.h, D) from counts of symbols: bits(j) fitted by weighted least squares, times `weight`.

    counts: u32, [context][parity][256]; costs: float32, [context][6].
    """
    cdef View k = view(counts, b"I")
    cdef View o = view(costs, b"f", True)
    cdef i64 row, rows = k.n // 512
    need(o, 6 * rows, "costs")
    with nogil:
        for row in range(rows):
            fit_cost(k.u32s() + 512 * row, row, labels, weight, <TrellisCost*>o.f32s() + row)


cdef void fit_cost(const u32* counts, i64 octave, bint labels, f64 weight, TrellisCost* cost) noexcept nogil:
    """A slope and a curve for both parities, a constant for each. A model that was hardly seen gets 1/2 bit a level."""
    cdef const u32* count
    cdef f64 power[5]       # sums of t^i, and of t^i bits, over the levels of a parity
    cdef f64 bits[3]
    cdef f64 base[2]
    cdef f64 rest[2]
    cdef f64 first[2]       # means of t, t^2 and bits
    cdef f64 second[2]
    cdef f64 third[2]
    cdef f64 tt = 0, tu = 0, uu = 0, tb = 0, ub = 0, slope = 0.5, curve = 0, all = 0, n, c, b, t, unit
    cdef int q, i, j, k, seen = 0
    for q in range(2):
        count = counts + 256 * q
        n = 0
        for i in range(2, 256):
            n += count[i]
        all += n
        base[q] = log2_of(n) - log2_of(count[128] if count[128] > 0 else 0.25) if n > 0 else 0
        first[q] = 0
        second[q] = 0
        third[q] = base[q] + 4 + slope
        memset(power, 0, sizeof(power))
        memset(bits, 0, sizeof(bits))
        for i in range(128 if n > 0 else 0):        # |j| from both signs
            if labels:
                j = 2 * i - q
                c = count[128 + i] + (count[128 - i] if i < 127 else 0)
            else:
                j = 2 * i + q
                c = count[128 + i] + (count[128 - i - q] if i + q < 127 else 0)
            if j <= 0 or c == 0:
                continue
            seen += 1
            t = j
            b = log2_of(n) - log2_of(c / 2)
            for k in range(5):
                power[k] += c
                if k < 3:
                    bits[k] += c * b
                c *= t
        if power[0] > 0:
            first[q] = power[1] / power[0]
            second[q] = power[2] / power[0]
            third[q] = bits[0] / power[0]
            tt += power[2] - power[1] * first[q]
            tu += power[3] - power[1] * second[q]
            uu += power[4] - power[2] * second[q]
            tb += bits[1] - power[1] * third[q]
            ub += bits[2] - power[2] * third[q]
    if all < 100:
        memset(base, 0, sizeof(base))
        memset(third, 0, sizeof(third))
        memset(first, 0, sizeof(first))
        memset(second, 0, sizeof(second))
    elif seen > 2:
        c = tt * uu - tu * tu
        if c > 1e-6 * tt * uu:
            slope = (tb * uu - ub * tu) / c
            curve = (ub * tt - tb * tu) / c
        elif tt > 0:
            # Laplacian or Gaussian? As zero would have it
            t = third[0] - base[0]
            slope = curve = -1 if fabs(t - tb / tt * first[0]) < fabs(t - ub / uu * second[0]) else 1
            slope = -slope
        # where both are not positive, one
        if curve < 0:
            curve = 0
            slope = max(tb / tt, 0)
        elif slope < 0:
            slope = 0
            curve = max(ub / uu, 0)
    if octave >= 22:
        slope = curve = 0
    for q in range(2):
        rest[q] = third[q] - slope * first[q] - curve * second[q]
    unit = 1 + weight * curve
    weight /= unit
    cost.scale = <f32>(1 / unit)
    cost.shift = <f32>min(weight * slope / 2, 7)
    cost.zero = <f32>(weight * (base[0] - rest[0]))
    cost.other = <f32>(weight * (base[1] - rest[1])) if labels else 4 * cost.shift
    cost.odd = <f32>(weight * (rest[1] - rest[0]))
    cost.unit = <f32>unit
