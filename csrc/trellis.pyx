cdef extern from "trellis_cpu.h" nogil:
    ctypedef struct TrellisCost:
        f32 scale
    f32 TRELLIS_FAR
    f32 nearest_f32(f32)
    int trellis_planes(int)
    void trellis_search_of(const f32*, const u8*, i64, const TrellisCost*, u8*, i32*, int, int)


def level_costs(counts, f64 weight, bint contexts, bint labels, costs) -> None:
    """The cost rows (trellis.h, D) of models of counts: bits(j) fitted by weighted least squares, times `weight`.

    counts: u32, [octave][parity][256] or [parity][256]. A model that was hardly seen gets 1/2 bit a level.
    """
    cdef View k = view(counts, b"I")
    cdef View o = view(costs, b"f", True)
    cdef i64 row, rows = k.n // 256
    need(o, 8 * rows, "costs")
    with nogil:
        for row in range(rows):
            fit_costs(k.u32s() + 256 * row, row & 1, row >> 1 if contexts else 0, labels, weight, o.f32s() + 8 * row)


cdef void fit_costs(const u32* count, int q, i64 octave, bint labels, f64 weight, f32* cost) noexcept nogil:
    cdef f64 w[5]
    cdef f64 r[3]
    cdef f64 early[2]
    cdef f64 bits, t, power, n = 0, base = 0, rest = 0, slope = 0.5, curve = 0, det, c, three, four
    cdef int i, j, seen = 0
    for i in range(2, 256):
        n += count[i]
    for i in range(5):
        w[i] = 0
    for i in range(3):
        r[i] = 0
    if n >= 100 and octave < 22:
        for i in range(128):        # |j| from both signs
            if labels:
                j = 2 * i - q
                c = count[128 + i] + (count[128 - i] if i < 127 else 0)
            else:
                j = 2 * i + q
                c = count[128 + i] + (count[128 - i - q] if i + q < 127 else 0)
            if j <= 0:
                continue
            if c == 0:
                continue
            seen += 1
            t = j
            bits = log2_of(n) - log2_of(c / 2)
            if seen <= 2:
                early[seen - 1] = bits
            power = c
            for j in range(5):
                w[j] += power
                if j < 3:
                    r[j] += power * bits
                power *= t
        base = log2_of(n) - log2_of(count[128] if count[128] > 0 else 0.25)
        rest = base + 4
        # quadratic, straight, constant: the first whose slope and curve are not negative
        if seen > 0:
            det = (w[0] * (w[2] * w[4] - w[3] * w[3]) - w[1] * (w[1] * w[4] - w[2] * w[3])
                   + w[2] * (w[1] * w[3] - w[2] * w[2]))
            slope = -1
            if seen == 2 and early[1] - early[0] > early[0] - base:     # two levels: bent like a Gaussian?
                det = w[0] * w[4] - w[2] * w[2]
                curve = (w[0] * r[2] - w[2] * r[0]) / det
                slope = 0 if curve >= 0 else -1
            if seen > 2 and det > 1e-9 * w[0] * w[2] * w[4]:
                slope = (w[0] * (r[1] * w[4] - r[2] * w[3]) - r[0] * (w[1] * w[4] - w[2] * w[3])
                         + w[2] * (w[1] * r[2] - w[2] * r[1])) / det
                curve = (w[0] * (w[2] * r[2] - w[3] * r[1]) - w[1] * (w[1] * r[2] - w[2] * r[1])
                         + r[0] * (w[1] * w[3] - w[2] * w[2])) / det
                if curve >= 0 and slope < 0:        # bits = rest + curve t^2
                    det = w[0] * w[4] - w[2] * w[2]
                    slope = 0
                    curve = (w[0] * r[2] - w[2] * r[0]) / det
                    if curve < 0:
                        slope = -1
                elif curve < 0:
                    slope = -1
            if slope < 0:
                curve = 0
                det = w[0] * w[2] - w[1] * w[1]
                slope = (w[0] * r[1] - w[1] * r[0]) / det if seen > 1 and det > 1e-9 * w[0] * w[2] else 0.5
                slope = 0 if slope < 0 else slope
            rest = (r[0] - slope * w[1] - curve * w[2]) / w[0]
            if rest < 0:
                rest = 0
                if curve > 0:
                    slope = 0
                    curve = r[2] / w[4]
                else:
                    slope = r[1] / w[2]
    elif octave >= 22:
        slope = 0
    three = rest + 3 * slope + 9 * curve - base
    four = rest + 4 * slope + 16 * curve - base
    cost[0] = <f32>(1 / (1 + weight * curve))
    cost[1] = <f32>(weight * slope / 2 / (1 + weight * curve))
    cost[2] = <f32>(weight * base)
    cost[3] = <f32>(weight * rest)
    cost[4] = <f32>(weight * slope)
    cost[5] = <f32>(weight * curve)
    cost[6] = <f32>(1.5 + weight * three / 6)
    cost[7] = <f32>(2 + weight * four / 8)
