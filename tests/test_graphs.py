"""Graphs and networks against dense matrices."""

from itertools import pairwise

import numpy as np
import pytest

from compress import graphs
from compress.graphs import Graph, Network, ring, star


def random_graph(n, seed, extra=2):
    """A random tree and some more edges."""
    rng = np.random.default_rng(seed)
    tree = [(int(rng.integers(i)), i) for i in range(1, n)]
    return Graph(tree + rng.integers(n, size=(extra * n, 2)).tolist(), n)


def dense(graph):
    """W from the edges, obviously."""
    L = np.zeros((graph.n, graph.n))
    for i, j in graph.edges:
        L[i, j] = L[j, i] = -1
        L[i, i] += 1
        L[j, j] += 1
    return L / np.linalg.eigvalsh(L)[-1]


@pytest.mark.parametrize("n, seed", [(2, 0), (3, 1), (20, 2), (57, 3)])
def test_gossip_is_the_matrix(n, seed):
    graph, rng = random_graph(n, seed), np.random.default_rng(seed)
    W, Z = dense(graph), rng.standard_normal((n, 7))
    assert np.array_equal(graph.laplacian() != 0, W != 0)
    np.testing.assert_allclose(graph.gossip(Z), W @ Z, atol=1e-14 * n)
    eigenvalues = np.linalg.eigvalsh(W)
    assert np.abs(W.sum(axis=0)).max() < 1e-14 and eigenvalues[-1] == pytest.approx(1, abs=1e-12)
    assert 1 / eigenvalues[1] == pytest.approx(graph.chi, rel=1e-10)
    for i in range(n):
        assert graph.neighbours(i).tolist() == np.flatnonzero((W[i] != 0) & (np.arange(n) != i)).tolist()
    assert graph.degrees.tolist() == [graph.neighbours(i).size for i in range(n)]


@pytest.mark.parametrize(
    "graph", [random_graph(40, 0), random_graph(40, 1, extra=8), Graph(star(40)), Graph(ring(np.arange(40)))], ids=repr
)
def test_rows_have_the_same_bits_whoever_asks(graph):
    Z = np.random.default_rng(0).standard_normal((40, 5))
    whole = graph.gossip(Z)
    for cuts in ([0, 40], [0, 13, 40], [0, 1, 2, 39, 40], range(41)):
        for first, last in pairwise(cuts):
            known = graph.neighbourhood(range(first, last))
            expected = sorted(
                set(range(first, last)).union(*(graph.neighbours(i).tolist() for i in range(first, last)))
            )
            assert known.tolist() == expected
            assert np.array_equal(graph.gossip(Z[known], range(first, last)), whole[first:last])


def test_spectra_that_are_known():
    n = 30
    assert Graph(ring(np.arange(n))).chi == pytest.approx(4 / (2 - 2 * np.cos(2 * np.pi / n)), rel=1e-10)
    assert Graph(star(n)).spectrum == pytest.approx((1, n), rel=1e-10)
    network = Network.ring_star(20)
    spectra = np.array([graph.spectrum for graph in network.graphs])
    assert spectra[:, 1].max() / spectra[:, 0].min() == pytest.approx(204.3, abs=0.05)
    assert network.chi == pytest.approx(40.86, abs=0.01)


@pytest.mark.parametrize("n", [40, 150])
@pytest.mark.parametrize("kind", ["geometric", "ring", "star", "random"])
def test_lanczos_never_makes_chi_too_small(n, kind):
    made = {
        "geometric": lambda: Network.geometric(n, 0.3, graphs=1)(0),
        "ring": lambda: Graph(ring(np.random.default_rng(0).permutation(n))),
        "star": lambda: Graph(star(n)),
        "random": lambda: random_graph(n, 0),
    }
    graph = made[kind]()
    least, largest = np.linalg.eigvalsh(graph.laplacian())[[1, -1]]
    found = graphs._extremes(graph._differences, n)
    assert found == pytest.approx((least, largest), rel=2e-6)
    assert found[0] <= least * (1 + 1e-12) and found[1] >= largest * (1 - 1e-12)


def path(n):
    """The edges of a path, which takes Lanczos' method to its last dimension."""
    return np.stack((np.arange(n - 1), np.arange(1, n)), axis=1)


@pytest.mark.parametrize("n", [301, 1200])
@pytest.mark.parametrize("kind", ["path", "tadpole", "star", "ring"])
def test_spectra_of_large_graphs(n, kind):
    half = n // 2
    edges = {
        "path": lambda: path(n),
        "tadpole": lambda: np.concatenate((ring(np.arange(half)), path(n)[half - 1 :])),
        "star": lambda: star(n),
        "ring": lambda: ring(np.arange(n)),
    }
    graph = Graph(edges[kind]())
    expected = np.linalg.eigvalsh(graph.laplacian())[[1, -1]] if kind == "tadpole" else known_spectrum(kind, n)
    assert graph.spectrum == pytest.approx(expected, rel=2e-6)


def known_spectrum(kind, n):
    turns = np.arange(1, n) / (2 * n if kind == "path" else n)
    eigenvalues = [1, n] if kind == "star" else 2 - 2 * np.cos(2 * np.pi * turns)
    return min(eigenvalues), max(eigenvalues)


@pytest.mark.parametrize("n", [2, 3, 32, 33, 34, 35])
def test_lanczos_ends_with_the_dimension(n):
    graph = Graph(path(n))
    assert graphs._extremes(graph._differences, n) == pytest.approx(known_spectrum("path", n), rel=2e-6)


def test_large_graphs_take_lanczos(monkeypatch):
    monkeypatch.setattr(graphs, "_DENSE", 10)
    assert random_graph(60, 1).chi == pytest.approx(1 / np.linalg.eigvalsh(dense(random_graph(60, 1)))[1], rel=1e-5)


def test_a_network_takes_graphs_in_turn():
    triangle = Graph([(0, 1), (1, 2), (2, 0)])
    network = Network([[(0, 1), (1, 2)], triangle, np.array([[0, 2], [2, 1], [1, 1], [2, 0]])], hold=2)
    assert network.n == 3 and len(network.graphs) == 3
    assert [len(network(k).edges) for k in range(8)] == [2, 2, 3, 3, 2, 2, 2, 2]
    assert network(4).edges.tolist() == [[0, 2], [1, 2]]
    assert network.chi == pytest.approx(3)
    adversarial = Network.adversarial(10, hold=5, seed=1)
    assert [adversarial.graphs.index(adversarial(k)) for k in (0, 4, 5, 9, 10, 14, 15)] == [0, 0, 1, 1, 2, 2, 0]
    assert adversarial(0).checksum != adversarial(5).checksum
    assert adversarial(0).chi == pytest.approx(adversarial(5).chi)
    repeated = Network([graph := Graph(star(4)), graph, Graph(ring(np.arange(4)))])
    assert repeated(0) is repeated(1) is not repeated(2)


def test_networkx_graphs_are_taken_as_they_are():
    networkx = pytest.importorskip("networkx")
    graph = networkx.random_geometric_graph(30, 0.5, seed=3)
    ours = Graph(graph)
    assert ours.edges.tolist() == sorted(sorted(edge) for edge in graph.edges)
    np.testing.assert_allclose(ours.laplacian(), networkx.laplacian_matrix(graph, range(30)).toarray())
    several = networkx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    assert Graph(several).edges.tolist() == [[0, 1], [1, 2]]
    for make, match in (
        (lambda: Network([networkx.path_graph(3)], 4), "graph 0: it has 3 nodes, the network 4"),
        (lambda: Network([star(4), networkx.Graph([(0, 1), (2, 3)])]), "graph 1: .*not connected.* component of 2, 3"),
        (lambda: Graph(networkx.DiGraph([(0, 1)])), "directed"),
        (lambda: Graph(networkx.Graph([("a", "b")])), "convert_node_labels_to_integers"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(TypeError, match=r"sequence of graphs, \[graph\] for one that never changes, got <networkx"):
        Network(networkx.path_graph(6))


def test_edges_of_networkx_that_differ_in_weight_are_refused():
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    graph.add_weighted_edges_from([(0, 1, 2.0), (1, 2, 2.0)])
    assert Graph(graph).edges.tolist() == [[0, 1], [1, 2]]
    for kind in (networkx.Graph, networkx.MultiGraph):
        mixed = kind(graph)
        mixed.add_edge(0, 2)
        with pytest.raises(ValueError, match="graph 0: its edges differ in weight"):
            Network([mixed])
        assert len(Graph(list(mixed.edges())).edges) == 3


def test_geometric_graphs_are_connected_and_follow_the_seed():
    one, same, other = (Network.geometric(20, 0.4, graphs=4, seed=seed) for seed in (1, 1, 2))
    assert repr(one) == repr(same) != repr(other)
    assert len({graph.checksum for graph in one.graphs}) == 4
    assert all(np.linalg.matrix_rank(graph.laplacian()) == 19 for graph in one.graphs)


BAD = [
    (lambda: Graph([(0, 1), (2, 3), (3, 4)]), ValueError, "not connected: .* node 0 to the component of 2, 3, 4$"),
    (lambda: Graph(star(5), 7), ValueError, "component of 5$"),
    (lambda: Graph([(0, 1)], 30), ValueError, "component of 2$"),
    (lambda: Graph([*star(4), *(star(20) + 4)]), ValueError, r"component of 4, 5, .*, 13 and 10 more"),
    (
        lambda: Network([star(4), [(0, 1), (2, 3)]]),
        ValueError,
        "graph 1: the graph is not connected.* component of 2, 3",
    ),
    (lambda: Network([star(4), star(5)]), ValueError, "graph 0: .*component of 4"),
    (lambda: Network([Graph(star(4)), star(5)]), ValueError, "graph 0: it has 4 nodes, the network 5"),
    (lambda: Network([]), ValueError, "at least one graph"),
    (lambda: Network([star(4)], hold=0), ValueError, "hold must be at least 1, got 0"),
    (lambda: Graph([(0, 5)], 3), ValueError, "nodes must be 0 to 2, got 5"),
    (lambda: Graph([(0, -1)], 3), ValueError, "nodes are numbered from 0, got -1"),
    (lambda: Graph([(0, -1)]), ValueError, "nodes are numbered from 0, got -1"),
    (lambda: Graph(5), TypeError, "pairs of integers or a networkx graph, got 5$"),
    (lambda: Graph([(0, 1), (1,)]), TypeError, r"pairs of integers or a networkx graph, got \[\(0, 1\), \(1,\)\]"),
    (lambda: Graph(np.eye(6, dtype=int)), TypeError, r"got int64 \(6, 6\)"),
    (lambda: Network(6), TypeError, "sequence of graphs, .* got 6"),
    (lambda: Network(Graph(star(4))), TypeError, r"sequence of graphs, .* got Graph\(n=4"),
    (lambda: Network([(0, 1), (1, 2)]), TypeError, "graph 0: edges must be pairs"),
    (lambda: Graph([(0.0, 1.0)]), TypeError, "pairs of integers"),
    (lambda: Graph([(0, 1, 2)]), TypeError, "pairs of integers"),
    (lambda: Graph([]), ValueError, "n must be at least 2"),
    (lambda: Graph([(0, 0)]), ValueError, "n must be at least 2"),
    (
        lambda: Network.geometric(30, 0.05),
        ValueError,
        "none of 1000 random geometric graphs of 30 nodes and radius 0.05",
    ),
    (lambda: Network.geometric(30, 0.0), ValueError, "radius must be positive"),
    (lambda: Network.ring_star(1), ValueError, "n must be at least 2"),
]


@pytest.mark.parametrize("make, error, match", BAD, ids=range(len(BAD)))
def test_bad_input_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()
