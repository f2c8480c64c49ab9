"""Graphs: who talks to whom, and the gossip matrices of networks that change from round to round.

The gossip matrix of a connected undirected graph is W = L / lambda_max(L), L its Laplacian: W_ij is not zero only where
i = j or ij is an edge, W 1 = 0, and ||z||^2 / chi <= z'Wz <= ||z||^2 for every z of mean zero, chi = lambda_max(L) /
lambda_2(L), the condition number. It acts on Z, a row for each node, through the lists of neighbours alone. Each graph
of a network is divided by its own lambda_max, so that what counts is the worst chi of its graphs, and not the worst
lambda_max over the worst lambda_2: for rings and stars of 20 nodes 41 in place of 204.
"""

from __future__ import annotations

import math
import reprlib
import zlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .compressor import positive_int

_DENSE = 300  # nodes up to which computing all eigenvalues is quicker
_FEW = 16  # neighbours up to which nodes are taken together


class _Plan(NamedTuple):
    """How rows of the Laplacian of a range of nodes are taken. Of nodes with few neighbours, by degree, the largest
    first, the k-th neighbours of all that have so many are seen to in one go; then the others, each by itself.

    known: the nodes and their neighbours. order: of the nodes. own: their rows among those known. turns: rows of first
    neighbours, of second ones, and so on. alone: of each of the others the place in the order, and the rows of its
    neighbours.
    """

    known: np.ndarray
    order: np.ndarray
    own: np.ndarray
    turns: list[np.ndarray]
    alone: list[tuple[int, np.ndarray]]


class Graph:
    """A connected undirected graph, and its gossip matrix.

    edges: pairs of nodes (not an adjacency matrix), or a networkx graph whose nodes are 0 to n - 1; loops and repeated
    edges change nothing. n: nodes, one more than the largest in `edges` unless given.

    Raises TypeError for edges of another kind; ValueError where the graph is not connected, with the nodes of a
    component, for one of fewer than two nodes, for nodes beyond n, and for networkx graphs that are directed or whose
    edges differ in weight.

    >>> graph = Graph([(0, 1), (1, 2)])
    >>> graph.neighbours(1), round(graph.chi, 12)
    (array([0, 2]), 3.0)
    >>> graph.gossip(np.array([[0.0], [0.0], [3.0]]))
    array([[ 0.],
           [-1.],
           [ 1.]])
    """

    def __init__(self, edges, n: int | None = None):
        edges, n = _pairs(edges, n)
        self.n = n
        both = np.unique(np.concatenate((edges, edges[:, ::-1])), axis=0)
        sources, self._neighbours = both.T.copy()
        self.degrees = _frozen(np.bincount(sources, minlength=n))
        self._starts = np.concatenate(([0], np.cumsum(self.degrees)))
        self._plans = {}
        _frozen(self._neighbours)
        if (component := self._apart()).size:
            more = f" and {component.size - 10} more" if component.size > 10 else ""
            raise ValueError(
                f"the graph is not connected: no path leads from node 0 to the component of "
                f"{', '.join(map(str, component[:10].tolist()))}{more}"
            )

    def _apart(self) -> np.ndarray:
        """The nodes of a component without node 0, none where the graph is connected."""
        everyone = np.arange(self.n)
        missed = np.setdiff1d(everyone, self._reached(0))
        return self._reached(missed[0]) if missed.size else missed

    def _reached(self, node) -> np.ndarray:
        reached = np.zeros(self.n, bool)
        front = np.array([node])
        while front.size:
            reached[front] = True
            near = np.concatenate([self.neighbours(i) for i in front.tolist()])
            front = np.unique(near[~reached[near]])
        return np.flatnonzero(reached)

    def neighbours(self, i: int) -> np.ndarray:
        """The neighbours of node i, ascending."""
        return self._neighbours[self._starts[i] : self._starts[i + 1]]

    def neighbourhood(self, nodes: range) -> np.ndarray:
        """A range of nodes and all their neighbours, ascending."""
        return self._plan(nodes).known

    @cached_property
    def edges(self) -> np.ndarray:
        """(m, 2): the edges, the smaller node of each first, in lexicographic order."""
        sources = np.repeat(np.arange(self.n), self.degrees)
        once = sources < self._neighbours
        return _frozen(np.stack((sources[once], self._neighbours[once]), axis=1))

    @cached_property
    def checksum(self) -> int:
        """crc32 of the edges."""
        return zlib.crc32(self.edges.astype("<i8").tobytes())

    def laplacian(self) -> np.ndarray:
        """(n, n): degrees on the diagonal, -1 for every edge."""
        matrix = np.diag(self.degrees.astype(np.float64))
        matrix[np.repeat(np.arange(self.n), self.degrees), self._neighbours] = -1
        return matrix

    @cached_property
    def spectrum(self) -> tuple[float, float]:
        """(lambda_2, lambda_max) of the Laplacian, the extreme eigenvalues other than that of the constant vector."""
        if self.n <= _DENSE:
            eigenvalues = np.linalg.eigvalsh(self.laplacian())
            return float(eigenvalues[1]), float(eigenvalues[-1])
        return _extremes(self._differences, self.n)

    @property
    def chi(self) -> float:
        """lambda_max / lambda_2."""
        least, largest = self.spectrum
        return largest / least

    def gossip(self, values: np.ndarray, nodes: range | None = None) -> np.ndarray:
        """W values, for the values (n, d) of all nodes, a row each; or its rows of a range of nodes, from the values of
        `neighbourhood(nodes)` alone. A row has the same bits whichever others are asked for."""
        return self._differences(values, nodes) / self.spectrum[1]

    def _differences(self, values, nodes=None):
        """Rows of the Laplacian times values: sum over neighbours j of (values_i - values_j)."""
        plan = self._plan(range(self.n) if nodes is None else nodes)
        own = values[plan.own]
        out = np.zeros_like(own)
        for near in plan.turns:
            out[: near.size] += own[: near.size] - values[near]  # exactly zero where they agree
        for place, near in plan.alone:
            np.sum(own[place] - values[near], axis=0, out=out[place])
        result = np.empty_like(out)
        result[plan.order] = out
        return result

    def _plan(self, nodes: range) -> _Plan:
        if (plan := self._plans.get(nodes)) is None:
            near = self._neighbours[self._starts[nodes.start] : self._starts[nodes.stop]]
            known = _frozen(np.union1d(near, np.arange(nodes.start, nodes.stop)))
            degrees = self.degrees[nodes.start : nodes.stop]
            order = np.argsort(np.where(degrees <= _FEW, -degrees, 0), kind="stable")
            busy, degrees = order + nodes.start, degrees[order]
            few, firsts = int(np.sum(degrees <= _FEW)), self._starts[busy]
            turns = [
                np.searchsorted(known, self._neighbours[firsts[: np.sum(degrees[:few] > k)] + k])
                for k in range(max(degrees[:few], default=0))
            ]
            alone = [(place, np.searchsorted(known, self.neighbours(busy[place]))) for place in range(few, len(nodes))]
            plan = self._plans[nodes] = _Plan(known, order, np.searchsorted(known, busy), turns, alone)
        return plan

    def __repr__(self):
        return f"Graph(n={self.n}, edges={len(self.edges)}, crc32={self.checksum:08x})"


class Network:
    """A graph for every round: those given in turn, each for `hold` rounds, and then from the first again.

    graphs: a sequence of networkx graphs, lists of edges, or `Graph`s. n: their nodes; where it is not given, those of
    the largest.

    Raises what `Graph` does, with the index of the graph, and TypeError for one graph that is not in a sequence.

    >>> network = Network.ring_star(20)
    >>> len(network(0).edges), len(network(1).edges), round(network.chi, 1)
    (20, 19, 40.9)
    >>> Network([[(0, 1), (1, 2)], [(0, 1)]])
    Traceback (most recent call last):
        ...
    ValueError: graph 1: the graph is not connected: no path leads from node 0 to the component of 2
    """

    def __init__(self, graphs, n: int | None = None, hold: int = 1):
        if not hasattr(graphs, "__iter__") or hasattr(graphs, "number_of_nodes"):
            raise TypeError(f"graphs must be a sequence of graphs, [graph] for one that never changes, got {graphs!r}")
        graphs = list(graphs)
        if not graphs:
            raise ValueError("a network needs at least one graph")
        if n is None:
            n = max(named(k, _size, graph) for k, graph in enumerate(graphs))
        made = {}  # a graph given several times is made once
        self.graphs = []
        for k, graph in enumerate(graphs):
            if id(graph) not in made:
                made[id(graph)] = named(k, _graph, graph, n)
            self.graphs.append(made[id(graph)])
        self.n, self.hold = n, positive_int(hold, "hold")

    @classmethod
    def ring_star(cls, n: int) -> Network:
        """A ring in even rounds, a star around node 0 in odd ones."""
        n = positive_int(n, "n", least=2)
        return cls([ring(np.arange(n)), star(n)], n)

    @classmethod
    def adversarial(cls, n: int, hold: int, seed=0) -> Network:
        """Two rings in random orders and a star, each held for a while.

        What a method learns of one graph misleads it on the next: momentum tuned for the sequence as if it were one
        graph makes errors grow.
        """
        n, rng = positive_int(n, "n", least=2), np.random.default_rng(seed)
        return cls([ring(rng.permutation(n)), ring(rng.permutation(n)), star(n)], n, hold)

    @classmethod
    def geometric(cls, n: int, radius: float, graphs: int = 50, seed=0) -> Network:
        """Random geometric graphs: nodes uniform in the unit square, an edge between those nearer than the radius.

        Each is drawn again until it is connected. Raises ValueError after 1000 draws that are not.
        """
        n, graphs, rng = positive_int(n, "n", least=2), positive_int(graphs, "graphs"), np.random.default_rng(seed)
        if not 0 < radius < math.inf:
            raise ValueError(f"radius must be positive and finite, got {radius}")
        made = []
        while len(made) < graphs:
            for _ in range(1000):
                places = rng.random((n, 2))
                squares = np.sum((places[:, None] - places) ** 2, axis=2)
                try:
                    made.append(Graph(np.argwhere(np.triu(squares < radius**2, 1)), n))
                    break
                except ValueError:
                    continue
            else:
                raise ValueError(f"none of 1000 random geometric graphs of {n} nodes and radius {radius} is connected")
        return cls(made, n)

    def __call__(self, k: int) -> Graph:
        """The graph of round k."""
        return self.graphs[k // self.hold % len(self.graphs)]

    @cached_property
    def chi(self) -> float:
        """The largest condition number of its graphs."""
        return max(graph.chi for graph in {id(graph): graph for graph in self.graphs}.values())

    def __repr__(self):
        together = zlib.crc32(repr([graph.checksum for graph in self.graphs]).encode())
        return f"Network(n={self.n}, graphs={len(self.graphs)}, hold={self.hold}, crc32={together:08x})"


def ring(order) -> np.ndarray:
    """The edges of the ring that visits nodes in this order."""
    return np.stack((order, np.roll(order, -1)), axis=1)


def star(n: int) -> np.ndarray:
    """The edges from node 0 to every other one."""
    return np.stack((np.zeros(n - 1, np.intp), np.arange(1, n)), axis=1)


def named(k: int, function, *arguments):
    """function(*arguments), whose errors name graph k."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"graph {k}: {error}") from None


def _size(graph) -> int:
    return graph.n if isinstance(graph, Graph) else _pairs(graph, None)[1]


def _graph(graph, n: int) -> Graph:
    if not isinstance(graph, Graph):
        return Graph(graph, n)
    if graph.n != n:
        raise ValueError(f"it has {graph.n} nodes, the network {n}")
    return graph


def _pairs(edges, n):
    """(edges as an (m, 2) array, n) of a networkx graph or of pairs."""
    if hasattr(edges, "number_of_nodes"):
        if edges.is_directed():
            raise ValueError("the graph is directed, gossip matrices are symmetric: pass graph.to_undirected()")
        nodes = edges.number_of_nodes()
        if set(edges.nodes) != set(range(nodes)):
            raise ValueError(f"nodes must be 0 to {nodes - 1}, as networkx.convert_node_labels_to_integers makes them")
        if n is not None and n != nodes:
            raise ValueError(f"it has {nodes} nodes, the network {n}")
        if len({weight for *_, weight in edges.edges(data="weight", default=1)}) > 1:
            raise ValueError(
                "its edges differ in weight, and all count alike here: pass list(graph.edges()) if they may"
            )
        n, edges = nodes, list(edges.edges())
    try:
        pairs = np.asarray(edges if isinstance(edges, np.ndarray) else list(edges))
    except (TypeError, ValueError):  # not iterable, or of different lengths
        raise TypeError(f"edges must be pairs of integers or a networkx graph, got {reprlib.repr(edges)}") from None
    pairs = pairs.reshape(-1, 2) if pairs.size == 0 else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2 or (pairs.size and pairs.dtype.kind not in "iu"):
        raise TypeError(f"edges must be pairs of integers or a networkx graph, got {pairs.dtype} {pairs.shape}")
    pairs = pairs.astype(np.int64)
    least, most = (int(pairs.min()), int(pairs.max())) if pairs.size else (0, 0)
    if least < 0:
        raise ValueError(f"nodes are numbered from 0, got {least}")
    n = positive_int(most + 1 if n is None else n, "n", least=2)
    if most >= n:
        raise ValueError(f"nodes must be 0 to {n - 1}, got {most}")
    return pairs[pairs[:, 0] != pairs[:, 1]], n


def _frozen(array):
    array.flags.writeable = False
    return array


def _extremes(product, n, tolerance=1e-6):
    """(least, largest) eigenvalue of a symmetric matrix on the vectors of mean zero, from its products with vectors.

    Lanczos' method with full orthogonalisation, until both are known to the relative tolerance by their residuals,
    which the least one is lowered by: chi is never too small.
    """
    v = np.random.default_rng(0).standard_normal(n)
    basis, diagonal, beside, due = np.empty((n, n)), [], [], 32
    for k in range(n):
        for _ in range(2):  # twice is enough
            v -= (basis[:k] @ v) @ basis[:k]
            v -= v.mean()
        size = float(np.linalg.norm(v))
        if k:
            beside.append(size)
        if k == due or k == n - 1 or (k and size < 1e-12 * max(diagonal)):
            due *= 2
            T = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
            values, vectors = np.linalg.eigh(T)
            least, largest = size * np.abs(vectors[-1, [0, -1]])
            if least <= tolerance * values[0] and largest <= tolerance * values[-1]:
                return float(values[0] - least), float(values[-1] + largest)
        basis[k] = v / size
        v = product(basis[k][:, None])[:, 0]
        diagonal.append(float(basis[k] @ v))
    raise RuntimeError(f"the spectrum of a graph of {n} nodes was not found")
