"""The figures, one function each. Matplotlib without a window."""

import re
from itertools import cycle, product

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "legend.frameon": False,
    "savefig.dpi": 220,
}
COLOURS = [*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors]
COLOURS = [c for c in COLOURS if max(c) - min(c) > 0.1]  # greys are the peers'
COLOURS += [to_rgb(c) for c in ("black", "navy", "limegreen", "deepskyblue")]
MARKERS = "osD^vP*X<>phH8d"
# for a few curves: told apart with any colour vision (Okabe and Ito 2008, without the yellow, and a grey)
SAFE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")


def family_styles(families):
    """Colour AND marker, so that print and colour-blind readers tell them apart; the same in every panel."""
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    return {family: {"color": c, "marker": m} for family, (c, m) in zip(families, looks, strict=False)}


def frontier_figure(points, title, d, path):
    """NMSE against bits per coordinate, contractive left, unbiased right, each with its worst-case bound."""
    styles = family_styles(dict.fromkeys(p.family for p in points if p.kind != "peer"))
    peers = dict.fromkeys(p.family for p in points if p.kind == "peer")
    least = min((p.bits for p in points if p.kind != "peer" and p.bits > 0), default=0) / 2
    points = [p for p in points if p.kind != "peer" or p.bits > least]
    panels = [
        ("contractive", "Contractive", lambda b: 4.0**-b, r"worst-case bound $\alpha \geq 4^{-b}$"),
        ("unbiased", "Unbiased", lambda b: 4.0**-b / (1 - 4.0**-b), r"worst-case bound $\omega \geq 1/(4^{b}-1)$"),
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.4, 6), width_ratios=(2, 3), layout="constrained")
        for axis, (kind, name, bound, bound_name) in zip(axes, panels, strict=True):
            mine = [p for p in points if p.kind == kind or (p.kind in ("-", "peer") and kind == "contractive")]
            shown = [p for p in mine if p.nmse > 1e-9 and p.bits > 0]
            axis.set(title=f"{name} compressors", xlabel="bits per coordinate sent")
            axis.set_ylabel(r"NMSE  $\|C(x)-x\|^2 / \|x\|^2$")
            if len(shown) < len(mine):
                note = f"not shown: {len(mine) - len(shown)} lossless or empty"
                axis.text(1, 1, note, transform=axis.transAxes, ha="right", va="top", fontsize=6.5)
            if not shown:
                continue
            axis.set(xscale="log", yscale="log")
            low, high = min(p.bits for p in shown) / 1.6, max(p.bits for p in shown) * 2
            bottom, top = min(p.nmse for p in shown) / 4, max(p.nmse for p in shown) * 4
            b = np.geomspace(low, high, 400)
            axis.plot(b, bound(b), color="crimson", label=bound_name)
            axis.fill_between(b, bound(b), bottom, color="crimson", alpha=0.05, linewidth=0)
            best = sorted((p for p in shown if p.frontier and p.kind != "peer"), key=lambda p: p.bits)
            if len(best) > 1:
                axis.plot([p.bits for p in best], [p.nmse for p in best], color="0.6", linestyle=":", label="frontier")
            for family, style in styles.items():
                where = [p.bits for p in shown if p.family == family], [p.nmse for p in shown if p.family == family]
                if where[0]:
                    axis.scatter(*where, s=18, linewidth=0, alpha=0.85, label=family, **style)
            for family, marker in zip(peers, cycle(MARKERS), strict=False):
                where = [p.bits for p in shown if p.family == family], [p.nmse for p in shown if p.family == family]
                if where[0]:
                    grey = {"facecolors": "white", "edgecolors": "0.35", "linewidth": 0.6, "marker": marker}
                    axis.scatter(*where, s=13, zorder=0.9, label=f"{family} (peer)", **grey)
            axis.set(xlim=(low, high), ylim=(bottom, top))
            axis.legend(loc="best", fontsize=6.5, handletextpad=0.3)
            labels, family = [], None
            for p in best:  # the family once, then its parameters alone while the frontier stays with it
                text = re.sub(r"\w+=(?!True)|=True|(?<=\w)\(\)", "", p.compressor.removeprefix(family or ""))
                labels.append((p.bits, p.nmse, text, styles[p.family]["color"]))
                family = p.family
            label_points(axis, labels)
        figure.suptitle(f"{title}, d = {d:,}", fontsize=9)
        figure.savefig(path)
        plt.close(figure)


def distance_figure(panels, path, low=0.04, high=9, top=4):
    """NMSE over the ideal uniform quantiser's at the same bits, a panel for each (name, title, points). Ours are
    filled and in colour, peers hollow and grey, each with the line through the best of them."""
    families = {p.family for *_, points in panels for p in points if p.kind == "peer"}
    panels = [
        (name, title, [p for p in points if p.ideal_ratio and low / 2 <= p.bits <= 2 * high and p.ideal_ratio <= top])
        for name, title, points in panels
    ]
    everything = [p for *_, points in panels for p in points]
    families -= {p.family for p in everything}
    styles = family_styles(dict.fromkeys(p.family for p in everything if p.kind != "peer"))
    markers = dict(zip(dict.fromkeys(p.family for p in everything if p.kind == "peer"), cycle(MARKERS), strict=False))
    bottom = min([0.45, *(p.ideal_ratio / 1.1 for p in everything)])
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3 if len(panels) in (3, 5, 6, 9) else 4
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        size = (6.6, 5.6) if len(panels) == 1 else (0.4 + 2.9 * columns, 1.2 + 2.8 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, layout="constrained")
        axes = np.atleast_1d(axes).ravel()
        ours, rivals = {}, {}
        for axis, (name, title, points) in zip(axes, panels, strict=False):
            ours["ideal uniform quantiser (no bytes)"] = axis.axhline(1, color="crimson", linewidth=0.8)
            mine = [p for p in points if p.kind != "peer"]
            others = [p for p in points if p.kind == "peer"]
            for promise, look in (("unbiased", {"linestyle": (0, (4, 1.5))}), ("any", {})):
                best = frontier_line([p for p in mine if promise in ("any", p.kind)])
                ours[f"the best, {promise}"] = axis.plot(*best, color="0.1", linewidth=1.1, zorder=3, **look)[0]
            for family, style in styles.items():
                ours[family] = axis.scatter(*places(mine, family), s=15, linewidth=0, alpha=0.9, zorder=4, **style)
            if others:
                rivals["the best"] = axis.plot(*frontier_line(others), color="0.6", linewidth=2.2, alpha=0.7, zorder=1)[
                    0
                ]
            for family, marker in markers.items():
                grey = {"facecolors": "white", "edgecolors": "0.35", "marker": marker, "linewidth": 0.6}
                rivals[family] = axis.scatter(*places(others, family), s=13, zorder=2, **grey)
            axis.set_title(f"{name}: {title}" if len(panels) == 1 else name)
            axis.grid(color="0.93", linewidth=0.5)
            axis.set_axisbelow(True)
        for axis in axes[len(panels) :]:
            axis.axis("off")
        for axis in axes[max(0, len(panels) - columns) : len(panels)]:
            axis.set_xlabel("bits per coordinate sent")
            axis.tick_params(labelbottom=True)
        for axis in axes[::columns]:
            axis.set_ylabel("NMSE over the ideal's at the same bits")
        ticks = [t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4) if bottom <= t <= top]
        bits = (0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8)
        axes[0].set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
        axes[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes[0].set_xticks(bits, [f"{b:g}" for b in bits])
        axes[0].minorticks_off()
        if families:
            rivals[f"off the scale: {', '.join(sorted(families))}"] = plt.Line2D([], [], linestyle="")
        legend = {"fontsize": 6.5, "alignment": "left", "handletextpad": 0.5, "columnspacing": 1.2}
        across = max(2, columns)
        figure.legend(ours.values(), ours, ncols=across, loc="outside lower left", title="this package", **legend)
        if rivals:
            figure.legend(rivals.values(), rivals, ncols=across, loc="outside lower right", title="peers", **legend)
        figure.savefig(path)
        plt.close(figure)


def places(points, family):
    return [p.bits for p in points if p.family == family], [p.ideal_ratio for p in points if p.family == family]


def frontier_line(points):
    """(bits, ratio to the ideal) along the points of least error for their bits, without those more than 3% above
    the line from one neighbour to the other (log NMSE against bits)."""
    best = []
    for p in sorted((p for p in points if p.nmse > 0), key=lambda p: (p.bits, p.nmse)):
        if best and p.nmse >= best[-1].nmse:
            continue
        if best and p.bits <= 1.01 * best[-1].bits:
            best.pop()
        while len(best) > 1:
            share = (best[-1].bits - best[-2].bits) / max(p.bits - best[-2].bits, 1e-12)
            if best[-1].nmse <= 1.03 * best[-2].nmse ** (1 - share) * p.nmse**share:
                break
            best.pop()
        best.append(p)
    return [p.bits for p in best], [p.ideal_ratio for p in best]


def label_points(axis, labels, size=6):
    """Write [(x, y, text, colour)] next to their points without overlaps: every label tries places ever further out
    and takes the first where it touches no point, curve or other label, and the line back to its point no point and
    no label. It is left out where there is none."""
    figure = axis.figure
    figure.canvas.draw()  # fixes the layout, so that display coordinates are final
    pixel, to_display = figure.dpi / 72, axis.transData.transform
    points = [to_display(c.get_offsets()) for c in axis.collections if isinstance(c, PathCollection)]
    solid = squares(np.concatenate(points), 2.2 * pixel)
    curves = [along(to_display(line.get_xydata()), 3 * pixel) for line in axis.get_lines()]
    curves = squares(np.concatenate(curves), pixel / 2)
    if axis.get_legend():
        solid = np.vstack([solid, axis.get_legend().get_window_extent().extents])
    directions = np.radians([45, 225, 20, 250, 70, 200, 0, 180, 90, 270, 135, 315])
    for x, y, text, colour in labels:
        point = to_display((x, y))
        place = {"textcoords": "offset points", "fontsize": size, "color": colour, "ha": "center", "va": "center"}
        probe = axis.annotate(text, (x, y), (0, 0), **place)
        half = np.array(probe.get_window_extent().size) / 2
        probe.remove()
        for distance, angle in product((4, 8, 13, 19, 26, 34, 43, 53, 64, 80, 100, 120), directions):
            direction = np.array([np.cos(angle), np.sin(angle)])
            centre = point + direction * (distance * pixel + half)
            box = np.concatenate([centre - half, centre + half])
            leader = squares(along(np.array([point + 4 * pixel * direction, centre]), pixel), pixel / 2)
            leader = leader[~touching(leader, box)]
            inside = np.all(axis.bbox.min <= box[:2]) and np.all(box[2:] <= axis.bbox.max)
            if inside and not touching(solid, box).any() and not touching(curves, box).any():
                if not any(touching(solid, step).any() for step in leader):
                    arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
                    axis.annotate(
                        text, (x, y), (centre - point) / pixel, arrowprops=arrow if distance > 8 else None, **place
                    )
                    solid = np.vstack([solid, box, leader])
                    break


def squares(centres, radius):
    """Boxes as rows (x0, y0, x1, y1)."""
    return np.hstack([centres - radius, centres + radius])


def touching(boxes, box):
    """Mask of the boxes that overlap one box."""
    return np.all(boxes[:, :2] < box[2:], axis=1) & np.all(box[:2] < boxes[:, 2:], axis=1)


def along(path, step):
    """Points every `step` along a polyline."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    at = np.arange(0, length[-1], step)
    return np.column_stack([np.interp(at, length, path[:, 0]), np.interp(at, length, path[:, 1])])


def kashin_figure(points, sizes, omegas, runs, decay, d, path):
    """Four panels: worst of five inputs against the bound; omega against d; bits to an accuracy; the clip iteration."""
    styles = family_styles(dict.fromkeys(family for _, family, *_ in points))
    with plt.rc_context(STYLE):
        figure, ((bound, growth), (descent, residual)) = plt.subplots(2, 2, figsize=(9.6, 7.6), layout="constrained")

        shown = [p for p in points if p[4] > 1e-7]
        b = np.linspace(0, 10.9, 300)
        bound.plot(b, 4.0**-b, color="crimson", label=r"worst-case bound $\alpha = 4^{-b}$")
        for family, style in styles.items():
            mine = [p for p in shown if p[1] == family]
            if mine:
                where = [p[3] for p in mine], [p[4] for p in mine]
                bound.scatter(*where, s=16, linewidth=0, alpha=0.85, label=family, **style)
        bound.set(yscale="log", xlim=(-0.3, 10.9), ylim=(1e-7, 2), xlabel="bits per coordinate sent")
        bound.set(ylabel=r"$\alpha$, or $\omega/(1+\omega)$ where unbiased", title=f"Worst of five inputs, d = {d}")
        bound.legend(fontsize=6, ncols=2, loc="lower left", handletextpad=0.3)

        looks = {
            "Kashin": "3 levels, redundancy 2 (3.2 bits)",
            "ternary": r"$\ell_2$ (1.6 bits)",
            "rotated": "9 levels (4 bits)",
        }
        for (label, omega), colour, marker in zip(omegas.items(), COLOURS, MARKERS, strict=False):
            growth.plot(sizes, omega, color=colour, marker=marker, markersize=4, label=f"{label}, {looks[label]}")
        growth.set(xscale="log", yscale="log", xlabel="d", ylabel=r"$\omega$ (measured, normal input)")
        growth.set_xscale("log", base=2)
        growth.set_title("Dimension")
        growth.legend()

        for (label, (bits, gap)), colour in zip(runs.items(), COLOURS, strict=False):
            descent.plot(bits / 1e6, gap, color=colour, label=label)
        descent.set(xscale="log", yscale="log", xlabel="Mbit sent", ylabel=r"$(f(x) - f^*) / (f(x_0) - f^*)$")
        descent.set(title=f"Compressed gradient descent on a quadratic, d = {d}", ylim=(5e-7, 2))
        descent.legend(loc="lower left")

        for ((eta, delta), curve), colour in zip(decay.items(), COLOURS, strict=False):
            steps = np.arange(len(curve))
            alive = curve > 1e-16
            name = rf"$\eta$ = {eta:g}, $\delta$ = {delta:g}"
            residual.plot(steps[alive], curve[alive], color=colour, marker="o", markersize=3, label=name)
            residual.plot(steps, eta**steps, color=colour, linestyle=":", label=rf"$\eta^k$, $\eta$ = {eta:g}")
        residual.set(yscale="log", xlabel="iteration k", ylabel=r"residual $\|r_k\| / \|x\|$, worst of five inputs")
        residual.set(title="Clip iteration, dense orthogonal frame, redundancy 2", ylim=(1e-6, 2))
        residual.legend()

        figure.savefig(path)
        plt.close(figure)
