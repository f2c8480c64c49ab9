"""Local and the ledger."""

import numpy as np
import pytest

import compress
from compress.comm import HEADER, Ledger
from compress.graphs import Graph


def messages(comm, sizes):
    """A message of each size, by workers in turn."""
    C = compress.StandardDithering(3)
    return [C.encode(np.ones(d, np.float32), compress.Key(0).worker(i)) for i, d in enumerate(sizes)]


def test_local_gives_the_messages_back_and_counts_them():
    comm = compress.Local(3)
    sent = messages(comm, [5, 0, 700])
    assert comm.allgather(sent) == sent
    bits, wire = sum(m.bits for m in sent), sum(m.payload.nbytes for m in sent) + 3 * HEADER
    assert comm.ledger == Ledger(bits, 2 * bits, wire, 2 * wire, 3)
    assert comm.ledger.wire_bytes == 3 * wire
    comm.allgather(sent)
    assert comm.ledger.bits_up == 2 * bits and comm.ledger.messages == 6


def test_one_worker_receives_nothing():
    comm = compress.Local(1)
    comm.allgather(messages(comm, [9]))
    assert comm.ledger.bits_up > 0 == comm.ledger.bits_down == comm.ledger.wire_down


def test_an_exchange_is_counted_once_for_each_neighbour():
    comm, graph = compress.Local(4), Graph([(0, 1), (0, 2), (0, 3), (2, 3)])
    sent = messages(comm, [5, 0, 700, 9])
    assert comm.exchange(sent, graph) == dict(enumerate(sent))
    bits = sum(message.bits * count for message, count in zip(sent, (3, 1, 2, 2), strict=True))
    wire = sum((message.payload.nbytes + HEADER) * count for message, count in zip(sent, (3, 1, 2, 2), strict=True))
    assert comm.ledger == Ledger(bits, bits, wire, wire, 8)
    assert all(type(count) is int for count in (comm.ledger.bits_up, comm.ledger.wire_up, comm.ledger.messages))
    with pytest.raises(ValueError, match="the graph has 2 nodes, the communicator 4 workers"):
        comm.exchange(sent, Graph([(0, 1)]))
    with pytest.raises(ValueError, match="3 messages of 4 workers"):
        comm.exchange(sent[:3], graph)
    with pytest.raises(TypeError, match="int"):
        comm.exchange([1, 2, 3, 4], graph)
    assert comm.ledger.messages == 8


def test_all_to_all_gives_each_what_is_for_it():
    comm = compress.Local(3)
    sent = [messages(comm, [10 * i + j for j in range(3)]) for i in range(3)]
    heard = comm.alltoall(sent)
    assert heard == [[sent[i][j] for i in range(3)] for j in range(3)]
    others = [sent[i][j] for i in range(3) for j in range(3) if i != j]
    bits, wire = sum(m.bits for m in others), sum(m.payload.nbytes + HEADER for m in others)
    assert comm.ledger == Ledger(bits, bits, wire, wire, 6)
    for bad, error, match in (
        (sent[:2], ValueError, "2 rows of messages, of 3 workers hosted here"),
        ([sent[0], sent[1], sent[2][:2]], ValueError, "2 messages to 3 workers"),
        ([sent[0], sent[1], [1, 2, 3]], TypeError, "int"),
    ):
        with pytest.raises(error, match=match):
            comm.alltoall(bad)
    assert comm.ledger.messages == 6


def test_what_is_observed_is_not_counted():
    comm, rows = compress.Local(2), np.array([[1.0, np.nan], [-0.0, np.inf]], np.float32)
    assert np.array_equal(np.array(comm.observe(rows)).view(np.uint32), rows.view(np.uint32))
    assert comm.ledger == Ledger()


def test_bad_input_is_named_and_not_counted():
    comm = compress.Local(2)
    with pytest.raises(ValueError, match="1 messages of 2 workers"):
        comm.allgather(messages(comm, [3]))
    with pytest.raises(TypeError, match="ndarray"):
        comm.allgather([np.zeros(3), np.zeros(3)])
    assert comm.ledger == Ledger()
    for n, error in ((0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n must be"):
            compress.Local(n)
