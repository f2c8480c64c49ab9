"""Local and the ledger."""

import numpy as np
import pytest

import compress
from compress.comm import HEADER, Ledger


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
