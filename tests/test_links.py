"""Links: what packets cost, that both ends stay together whatever is lost, and that damage is refused."""

import copy
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

import compress

pytest.importorskip("torch")
from compress.federated.links import ClientLink, Links, Refused, ServerLink, pack, unpack

D, S = 600, 5
PLAIN = Links()
KINDS = {
    "plain": PLAIN,
    "eden, error": Links(compress.Eden(1), compress.Eden(1)),
    "kashin, shift": Links(compress.Kashin(3), compress.Kashin(3), "shift"),
    "trellis, error": Links(compress.Trellis(2), compress.Trellis(2)),
    "topk, shift": Links(compress.TopK(0.1), compress.TopK(0.1), "shift"),
    "randk, none": Links(compress.RandK(0.25), compress.RandK(0.25), "none"),
}
ALL = pytest.mark.parametrize("links", KINDS.values(), ids=KINDS)


def update(round, client, d=D):
    """What a client would learn: the same for all, and something of its own."""
    rng = np.random.default_rng([round, client])
    return (0.1 * np.sin(np.arange(d) + client) + 0.02 * rng.standard_normal(d)).astype(np.float32)


def ends(links, n=1, d=D, s=S, seed=0):
    x, statistics = np.linspace(-1, 1, d, dtype=np.float32), np.ones(s, np.float32)
    return ServerLink(links, x, statistics, n, seed), [ClientLink(links, x, statistics, i, seed) for i in range(n)]


def answer(client, blob, d=D):
    """What a client answers to a packet."""
    task = client.receive(blob)
    return client.answer(update(task.round, client.index, d), task.statistics + 1, 10 + client.index, {"loss": 0.5})


def play(server, clients, rounds, lost=lambda round, i: None):
    """Rounds in which lost(round, i) is None, "packet" or "answer"; how each packet came: {(round, i): its bytes}."""
    sizes = {}
    for _ in range(rounds):
        server.open()
        answers = {}
        for i, client in enumerate(clients):
            blob, fate = server.packet(i), lost(server.round, i)
            sizes[server.round, i] = len(blob)
            if fate == "packet":
                continue
            reply = answer(client, blob, server.x.size)
            assert client.view.tobytes() == server.view.tobytes()
            together(server, client)
            if fate is None:
                answers[i] = server.take(i, reply)
        server.close()
    return sizes


def together(server, client):
    """Where the server's shift is what the client has, once it has received a packet."""
    if server.links.memory == "shift":
        shift = server.shifts[client.index]
        here, there = (client.memory if client.memory.size else None), shift
        assert (here is None) == (there is None)
        assert here is None or here.tobytes() == there.tobytes()


def overhead(blob):
    """Bytes of a packet that are no payload, counted from its parts."""
    packet = unpack(blob)
    return 9 + len(json.dumps(packet.head, separators=(",", ":"))) + 4


# What it costs


@ALL
def test_a_packet_is_its_header_and_what_the_compressor_says(links):
    server, (client,) = ends(links)
    for round in (1, 2, 3):
        server.open()
        blob = server.packet(0)
        reply = answer(client, blob)
        server.take(0, reply)
        server.close()
        for compressor, sent, first in ((links.down, blob, round == 1), (links.up, reply, False)):
            messages, statistics = unpack(sent).messages[:-1], unpack(sent).messages[-1]
            assert len(messages) == (0 if first else 1) and statistics.bits == 32 * S
            bits = [message.bits for message in messages]
            if compressor.fixed_length:
                assert bits == [compressor.bits(D)] * len(messages)
            else:
                about = 2 * D if isinstance(compressor, compress.Trellis) else compressor.bits(D)
                assert all(0.85 * about < each < 1.15 * about for each in bits)
            assert len(sent) == overhead(sent) + sum(-(-each // 8) for each in bits) + 4 * S
            assert overhead(sent) < 200


def test_without_compression_a_round_is_32_bits_a_number_each_way():
    server, (client,) = ends(PLAIN, s=0)
    for _ in range(2):
        server.open()
        blob = server.packet(0)
        task = client.receive(blob)
        reply = client.answer(update(1, 0), task.statistics, 1)
        server.take(0, reply)
        server.close()
    assert 8 * len(blob) - 8 * overhead(blob) == 8 * len(reply) - 8 * overhead(reply) == 32 * D
    assert server.view.tobytes() == server.x.tobytes()


# That both ends stay together


@ALL
def test_views_and_shifts_are_the_same_whatever_is_lost(links):
    rng = np.random.default_rng(3)
    draw = rng.choice([None, "packet", "answer"], (41, 4), p=[0.5, 0.25, 0.25])
    fates = {(r, i): draw[r, i] for r in range(1, 41) for i in range(4)}
    assert len(set(fates.values())) == 3
    server, clients = ends(links, 4)
    play(server, clients, 40, lambda r, i: fates[r, i])
    play(server, clients, 1)
    assert len({client.view.tobytes() for client in clients}) == 1
    assert server.version > 35 and np.linalg.norm(server.x - np.linspace(-1, 1, D)) > 1


@pytest.mark.parametrize("fate", ["packet", "answer"])
def test_catching_up_takes_what_was_missed_or_the_whole_if_that_is_shorter(fate):
    links = Links(compress.Eden(1), compress.Eden(1))
    whole, one = 4 * D, links.down.bits(D) // 8
    server, clients = ends(links, 2, s=0)
    sizes = play(server, clients, 60, lambda r, i: fate if i == 1 and 3 < r < 60 else None)
    most = whole // one
    assert 20 < most < 40
    for r in range(4, 61):
        messages = r - 3 if r - 3 <= most else 1  # since round 3, or the whole
        payload = (r - 3) * one if r - 3 <= most else whole
        assert 100 < sizes[r, 1] - payload < 150 + 12 * messages, r
        assert 100 < sizes[r, 0] - one < 170  # who has missed nothing pays nothing
    sizes = play(server, clients, 2)
    assert sizes[61, 1] < one + 170 and clients[1].view.tobytes() == clients[0].view.tobytes()


@ALL
@pytest.mark.parametrize("fate", ["packet", "answer"])
def test_a_lost_answer_is_as_if_the_client_had_not_taken_part(links, fate):
    server, clients = ends(links, 2)
    play(server, clients, 6, lambda r, i: fate if i == 1 and r in (3, 4) else None)
    other, others = ends(links, 2)
    play(other, others, 2)
    for _ in range(2):  # client 1 is not asked
        other.open()
        other.take(0, answer(others[0], other.packet(0)))
        other.close()
    play(other, others, 2)
    assert server.x.tobytes() == other.x.tobytes() and server.view.tobytes() == other.view.tobytes()
    for client, same in zip(clients, others, strict=True):
        assert client.memory.tobytes() == same.memory.tobytes()
        assert client.pending[0] == same.pending[0] == 6
        assert client.pending[1].tobytes() == same.pending[1].tobytes()


def test_error_feedback_sends_everything_in_the_end():
    links = Links(compress.Eden(1), compress.Eden(1))
    server, (client,) = ends(links)
    meant = np.zeros(D)
    for _ in range(30):
        server.open()
        server.take(0, answer(client, server.packet(0)))
        server.close()
        meant += update(server.round, 0)
    left = client.pending[1]
    assert np.linalg.norm(left) > 0.1  # there is something to account for
    np.testing.assert_allclose(server.x - np.linspace(-1, 1, D) + left, meant, rtol=0, atol=1e-5)


def test_the_view_forgets_nothing_of_the_model():
    """x - v stays bounded, and goes away when x stops: what C leaves out is sent later."""
    links = Links(down=compress.Eden(2))
    server, (client,) = ends(links)
    play(server, [client], 20)
    gap = np.linalg.norm(server.x - server.view)
    assert 0 < gap < 0.5 * np.linalg.norm(update(1, 0))
    for _ in range(12):
        server.open()
        task = client.receive(server.packet(0))
        server.take(0, client.answer(np.zeros(D), task.statistics, 1))
        server.close()
    assert np.linalg.norm(server.x - server.view) < 1e-3 * gap


def test_the_mean_is_weighted():
    server, clients = ends(PLAIN, 3)
    server.open()
    replies = [answer(client, server.packet(client.index)) for client in clients]
    for i in range(3):
        server.take(i, replies[i])
    server.close()
    start = np.linspace(-1, 1, D, dtype=np.float32)
    mean = np.average([update(1, i) for i in range(3)], axis=0, weights=[10, 11, 12])
    np.testing.assert_allclose(server.x, start + mean, rtol=0, atol=1e-6)
    assert np.array_equal(server.statistics, np.full(S, 2))
    uniform, clients = ends(PLAIN, 3)
    uniform.open("uniform")
    replies = [answer(client, uniform.packet(client.index)) for client in clients]
    for i in range(3):
        uniform.take(i, replies[i])
    uniform.close()
    np.testing.assert_allclose(uniform.x, start + np.mean([update(1, i) for i in range(3)], axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("links", [PLAIN, KINDS["eden, error"]], ids=["plain", "eden"])
def test_a_round_holds_one_mean_whatever_the_clients(links):
    """The server's memory in a round: what is taken is added up, and packets of those who know the same are one."""
    d, n = 50_000, 12
    server, clients = ends(links, n, d=d)
    for _ in range(2):
        server.open()
        packets = [server.packet(i) for i in range(n)]
        assert len(set(map(id, packets))) == 1
        replies = [answer(client, blob, d) for client, blob in zip(clients, packets, strict=True)]
        tracemalloc.start()
        for i, reply in enumerate(replies):
            server.take(i, reply)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        server.close()
        assert held < 4 * d
    assert server.version == 2


def test_packets_of_a_round_are_of_what_each_client_knows():
    server, clients = ends(KINDS["eden, error"], 4)
    play(server, clients, 3, lambda r, i: "answer" if (r, i) == (3, 1) else "packet" if (r, i) == (3, 2) else None)
    server.open()
    packets = [server.packet(i) for i in range(4)]
    assert packets[0] is packets[3]
    heads = [unpack(blob).head for blob in packets]
    assert [(head["base"], head["heard"]) for head in heads] == [(2, 3), (1, 2), (1, 2), (2, 3)]
    server.replace(np.zeros(D), np.zeros(S))
    assert unpack(server.packet(0)).head["whole"] and clients[0].receive(server.packet(0)).x.max() == 0


@pytest.mark.parametrize("pull", [0.0, 0.25, 1.0])
def test_what_is_still_to_come_counts_by_the_share_of_the_view(pull):
    """Note F: clients at x_i answer x_i - v; w is then v + pull (w - v) + mean (x_i - v)."""
    server, clients = ends(Links(down=compress.Eden(1)), 2, s=0)
    play(server, clients, 2)
    x, view = server.x.astype(np.float64), server.view.astype(np.float64)
    assert np.linalg.norm(x - view) > 0.1
    server.open()
    for i, client in enumerate(clients):
        client.receive(server.packet(i))
        mine = pull if i else min(1.0, 2 * pull)  # of 1 and 3 examples
        server.take(i, client.answer(update(9, i), [], 1 + 2 * i, pull=mine))
    server.close()
    share = 0.75 * pull + 0.25 * min(1.0, 2 * pull)
    mean = 0.25 * update(9, 0) + 0.75 * update(9, 1)
    np.testing.assert_allclose(server.x, view + share * (x - view) + mean, rtol=0, atol=1e-6)


def test_statistics_that_are_constant_stay_to_the_bit():
    x, constant = np.zeros(3, np.float32), np.float32([0.4914, 0.1, 7])
    server = ServerLink(PLAIN, x, constant, 7)
    clients = [ClientLink(PLAIN, x, constant, i) for i in range(7)]
    for _ in range(10):
        server.open()
        tasks = [client.receive(server.packet(client.index)) for client in clients]
        blobs = [c.answer(np.ones(3), t.statistics, 3 + c.index) for c, t in zip(clients, tasks, strict=True)]
        for i, blob in enumerate(blobs):
            server.take(i, blob)
        server.close()
    assert server.statistics.tobytes() == constant.tobytes()


# States


@ALL
def test_states_go_on_to_the_same_bits(links):
    def lost(r, i):
        return [None, "answer", "packet", None][(r + i) % 4]

    server, clients = ends(links, 3)
    play(server, clients, 7, lost)
    again, others = ends(links, 3)
    again.load_state_dict(server.state_dict())
    for other, client in zip(others, clients, strict=True):
        other.load_state_dict(client.state_dict())
    for here, there in ((server, clients), (again, others)):
        play(here, there, 6, lost)
    assert again.x.tobytes() == server.x.tobytes() and again.view.tobytes() == server.view.tobytes()
    assert [c.memory.tobytes() for c in others] == [c.memory.tobytes() for c in clients]


def test_a_state_is_not_changed_by_what_comes_after_it():
    server, clients = ends(KINDS["kashin, shift"], 2)
    play(server, clients, 3)
    states = [each.state_dict() for each in (server, *clients)]
    before = copy.deepcopy(states)
    play(server, clients, 3)
    for state, old in zip(states, before, strict=True):
        for name, value in old.items():
            np.testing.assert_equal(state[name], value)


def test_states_of_others_are_refused():
    server, (client,) = ends(PLAIN)
    with pytest.raises(ValueError, match="the state is of 2 clients"):
        server.load_state_dict(ends(PLAIN, 2)[0].state_dict())
    with pytest.raises(ValueError, match="Eden"):
        client.load_state_dict(ends(KINDS["eden, error"])[1][0].state_dict())
    with pytest.raises(ValueError, match="no state of a server's links: it has no config, round"):
        server.load_state_dict({})
    with pytest.raises(ValueError, match="no state of the link of client 0: it has no pending"):
        client.load_state_dict({k: v for k, v in client.state_dict().items() if k != "pending"})


@ALL
@pytest.mark.parametrize("who", ["client, new", "client, older", "server, new", "server, older"])
def test_an_end_that_lost_its_state_comes_back(links, who):
    server, clients = ends(links, 2)
    play(server, clients, 2)
    old = copy.deepcopy(server.state_dict()), copy.deepcopy(clients[1].state_dict())
    play(server, clients, 3)
    fresh, others = ends(links, 2)
    if who == "client, new":
        clients[1] = others[1]
    elif who == "client, older":
        clients[1].load_state_dict(old[1])
    elif who == "server, new":
        server = fresh
    else:
        server.load_state_dict(old[0])
    failed = 0
    for _ in range(3):
        server.open()
        answers = {}
        for i, client in enumerate(clients):
            try:
                reply = answer(client, server.packet(i))
            except Refused as error:
                reply, failed = client.failure(error), failed + 1
            try:
                answers[i] = server.take(i, reply)
            except Refused:
                continue
            assert client.view.tobytes() == server.view.tobytes()
        server.close()
    assert len(answers) == 2  # in the third round at the latest all are back
    assert failed <= 2 and (failed or links is PLAIN or who != "client, new")
    play(server, clients, 3)  # and bits and shifts are the same from there on


def test_shifts_of_different_rounds_are_noticed():
    """A server that came back, and sends all the whole view, meets a client that went back to an older state."""
    server, clients = ends(KINDS["kashin, shift"], 2)
    play(server, clients, 2)
    old = clients[1].state_dict()
    play(server, clients, 3)
    clients[1].load_state_dict(old)
    server.versions = [None, None]
    server.open()
    with pytest.raises(Refused, match="the server's shift is of round 5, here it is of round 1") as caught:
        clients[1].receive(server.packet(1))
    with pytest.raises(Refused, match="shift is of round"):
        server.take(1, clients[1].failure(caught.value))
    server.take(0, answer(clients[0], server.packet(0)))
    assert server.shifts[0] is not None
    server.close()
    play(server, clients, 3)


def test_clients_join_and_models_are_replaced():
    links = KINDS["kashin, shift"]
    server, clients = ends(links, 1)
    play(server, clients, 3)
    clients.append(ClientLink(links, np.zeros(D), np.zeros(S), server.join()))
    sizes = play(server, clients, 2)
    assert sizes[4, 1] > 4 * D > sizes[5, 1]
    server.replace(np.ones(D), np.ones(S))
    sizes = play(server, clients, 2)
    assert min(sizes[6, 0], sizes[6, 1]) > 4 * D > max(sizes[7, 0], sizes[7, 1])


# What is refused


def test_an_old_answer_and_a_second_one_are_refused():
    server, clients = ends(KINDS["topk, shift"], 2)
    server.open()
    old = [answer(client, server.packet(client.index)) for client in clients]
    server.take(0, old[0])
    server.close()
    before = copy.deepcopy(server.state_dict())
    with pytest.raises(Refused, match="a second answer of client 0 to round 1"):
        server.take(0, old[0])
    server.open()
    with pytest.raises(Refused, match="an answer of client 0 to round 1; this is client 0, round 2"):
        server.take(0, old[0])
    reply = answer(clients[0], server.packet(0))
    with pytest.raises(Refused, match="client 0 to round 2; this is client 1"):
        server.take(1, reply)
    np.testing.assert_equal(server.state_dict() | {"round": 1}, before)


def test_an_old_packet_is_refused():
    server, clients = ends(KINDS["topk, shift"])
    server.open()
    old = server.packet(0)
    server.take(0, answer(clients[0], old))
    server.close()
    with pytest.raises(Refused, match="a packet of round 1, after one of round 1"):
        clients[0].receive(old)


@pytest.mark.parametrize("d, seed, links", [(D, 1, PLAIN), (D - 1, 0, PLAIN), (D, 0, KINDS["eden, error"])])
def test_another_configuration_is_refused_and_named(d, seed, links):
    server, _ = ends(PLAIN)
    _, (other,) = ends(links, d=d, seed=seed)
    server.open()
    with pytest.raises(Refused, match="another configuration") as caught:
        other.receive(server.packet(0))
    assert other.config in str(caught.value)
    with pytest.raises(Refused, match=r"another configuration, .*than client 0 has"):
        server.take(0, other.failure(caught.value))
    forged = ends(links, d=d, seed=seed)
    forged[0].open()
    with pytest.raises(Refused, match="an answer of another configuration") as caught:
        server.take(0, answer(forged[1][0], forged[0].packet(0), d))
    assert server.config in str(caught.value)


@pytest.mark.parametrize("links", [PLAIN, KINDS["eden, error"], KINDS["topk, shift"]], ids=["plain", "eden", "topk"])
def test_whatever_is_done_to_a_byte_is_refused(links):
    server, (client,) = ends(links, d=12, s=2)
    server.open()
    server.take(0, answer(client, server.packet(0), 12))
    server.close()
    server.open()
    blob = server.packet(0)
    rounds = copy.deepcopy(client)
    reply = answer(rounds, blob, 12)
    for good, read in ((blob, client.receive), (reply, lambda bad: server.take(0, bad))):
        before = copy.deepcopy((client.state_dict(), server.state_dict()))
        for place in range(len(good)):
            for bad in (
                good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :],
                good[:place],
                good[:place] + good[place + 1 :],
            ):
                with pytest.raises(Refused):
                    read(bad)
        np.testing.assert_equal((client.state_dict(), server.state_dict()), before)
    client.receive(blob)
    server.take(0, reply)


STRANGE = [None, -1, 10**30, 2**63, "x", "", [], {}, 1.5, float("nan"), float("inf"), True, [[1, 2]], {"a": 1}]


def survives(read, blob):
    """Read it or refuse it."""
    try:
        return read(blob)
    except Refused:
        return None


@pytest.mark.parametrize("links", KINDS.values(), ids=KINDS)
def test_headers_of_hostile_peers_are_read_or_refused(links):
    server, (client,) = ends(links, s=2)
    play(server, [client], 2)
    server.open()
    blob = server.packet(0)
    reply = answer(copy.deepcopy(client), blob)
    for good, end, name in ((blob, client, "receive"), (reply, server, "take")):
        packet = unpack(good)
        head = {key: value for key, value in packet.head.items() if key != "messages"}
        for key in [*head, "failed", "lost", "pull"]:
            for value in STRANGE:
                bad = pack(head | {key: value}, packet.messages)
                fresh = copy.deepcopy(end)
                taken = survives(getattr(fresh, name) if name == "receive" else lambda b, f=fresh: f.take(0, b), bad)
                if name == "take" and taken is not None:
                    fresh.close()
                    assert np.isfinite(fresh.x).all() and np.abs(fresh.x - server.x).max() < 10
            if key in head:
                fresh = copy.deepcopy(end)
                with pytest.raises(Refused):
                    bad = pack({k: v for k, v in head.items() if k != key}, packet.messages)
                    fresh.receive(bad) if name == "receive" else fresh.take(0, bad)
        for messages in ([], packet.messages[:1], packet.messages * 2, packet.messages[::-1]):
            if messages != packet.messages:
                fresh = copy.deepcopy(end)
                with pytest.raises(Refused):
                    bad = pack(head, messages)
                    fresh.receive(bad) if name == "receive" else fresh.take(0, bad)
    lists = (b'{"messages": %s}' % each for each in (b"5", b"[[1]]", b"[[-8, 1]]", b"[[8, 1]]", b'[["8", 1]]'))
    for text in (b"[]", b"7", b"null", b"\xff", b"", *lists):
        with pytest.raises(Refused):
            unpack(forged(text))
    with pytest.raises(Refused):
        unpack(forged(b'{"messages":' + b"[" * 100_000))


def forged(header, payload=b""):
    body = struct.pack("<4sBI", b"CMPP", 1, len(header)) + header + payload
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("links", list(KINDS.values())[1:], ids=list(KINDS)[1:])
def test_payloads_of_hostile_peers_are_read_or_refused(links):
    server, (client,) = ends(links)
    play(server, [client], 1)
    server.open()
    packet = unpack(answer(client, server.packet(0)))
    head = {key: value for key, value in packet.head.items() if key != "messages"}
    rng, read = np.random.default_rng(0), 0
    for trial in range(90):
        first = packet.messages[0]
        payload = rng.integers(0, 256, first.payload.size, np.uint8)
        if trial % 3:  # most of it as it was, or all but a byte: the first ones may be a scale
            kept = rng.random(payload.size) < 0.95 if trial % 3 == 1 else np.arange(payload.size) != trial // 3
            payload = np.where(kept, first.payload, payload)
        bad = pack(head, [first._replace(payload=payload), packet.messages[1]])
        fresh = copy.deepcopy(server)
        taken = survives(lambda b, f=fresh: f.take(0, b), bad)
        if taken is not None:
            read += 1
            survives(lambda _, f=fresh: f.close(), None)
            assert np.isfinite(fresh.x).all() and np.isfinite(fresh.view).all()
    assert read > 0
    assert read < 90 or links.memory == "none"


@pytest.mark.parametrize("links", [PLAIN, Links(down=compress.ScaledSign()), Links(memory="shift")], ids=str)
def test_a_mean_that_overflows_moves_nothing(links):
    server, (client,) = ends(links, s=0)
    huge = np.full(D, 3e38, np.float32)
    refused = 0
    for _ in range(3):
        server.open()
        x, view, version = server.x, server.view, server.version
        client.receive(server.packet(0))
        try:
            server.take(0, client.answer(huge, [], 1))
            server.close()
        except (Refused, ValueError) as error:
            refused += 1
            assert "finite" in str(error) or "cannot be sent" in str(error) or "NaN or Inf" in str(error)
            assert server.x is x and server.view is view and server.version == version
    assert refused and np.isfinite(server.view).all()


@pytest.mark.parametrize("name", ["eden, error", "kashin, shift"])
def test_a_refused_mean_takes_nothing_from_memories(name):
    """What a client has left out before comes with its next answer; shifts stay the same at both ends."""
    links = KINDS[name]
    server, (client, other) = ends(links, 2)
    same, (twin, _) = ends(links, 2)
    for each, ours in ((server, (client, other)), (same, (twin, None))):
        for _ in range(3):  # without the second client
            each.open()
            each.take(0, answer(ours[0], each.packet(0)))
            each.close()
    server.open(), same.open()
    server.take(0, answer(client, server.packet(0)))
    server.packet(1), answer(twin, same.packet(0))  # the twin's answer is lost instead
    other.receive(server.packet(1))
    server._mean.update[:] = np.inf
    with pytest.raises(Refused, match=r"not finite|cannot be sent"):
        server.close()
    same.close()
    with pytest.raises(Refused, match="which is over" if links.memory == "error" else "a second answer"):
        server.take(0, client.answer(update(4, 0), np.ones(S), 1))
    server.open(), same.open()
    reply, twins = answer(client, server.packet(0)), answer(twin, same.packet(0))
    if links.memory == "error":
        assert client.memory.any() and client.memory.tobytes() == twin.memory.tobytes() and reply == twins
    together(server, client)
    server.take(0, reply)
    server.close()
    play(server, [client], 2)


def test_a_failure_is_believed_where_it_is_of_this_client_and_round():
    server, clients = ends(KINDS["kashin, shift"], 2)
    play(server, clients, 2)
    server.open()
    clients[0].receive(server.packet(0))
    clients[0].lost = True
    old = clients[0].failure(OSError("disk"))
    server.close()
    play(server, clients, 2)
    before = copy.deepcopy(server.state_dict())
    server.open()
    with pytest.raises(Refused, match="an answer of client 0 to round 3; this is client 0, round 6"):
        server.take(0, old)
    with pytest.raises(Refused, match="an answer of client 0 to round 3; this is client 1, round 6"):
        server.take(1, old)
    with pytest.raises(Refused, match="another configuration, 0, than"):
        server.take(1, pack({"failed": "x", "lost": True, "config": "0"}, []))
    np.testing.assert_equal(server.state_dict() | {"round": 5}, before)
    with pytest.raises(Refused, match=r"^anything$"):  # who cannot say more is believed
        server.take(1, pack({"failed": "anything", "lost": True}, []))
    assert server.versions[1] is server.heard[1] is server.shifts[1] is None


def test_numbers_of_any_kind_are_metrics():
    server, (client,) = ends(PLAIN)
    server.open()
    task = client.receive(server.packet(0))
    metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": [np.float64(1.5)], "e": 2}
    taken = server.take(0, client.answer(task.x, task.statistics, 1, metrics))
    assert taken.metrics == {"a": 0.5, "b": 3, "c": True, "d": [1.5], "e": 2} and taken.examples == 1
    with pytest.raises(TypeError, match="neither a number"):
        client.answer(task.x, task.statistics, 1, {"loss": object()})


def test_what_a_client_cannot_send_is_an_error():
    server, (client,) = ends(PLAIN)
    server.open()
    task = client.receive(server.packet(0))
    with pytest.raises(ValueError, match="x has 1 NaN or Inf"):
        client.answer(np.where(np.arange(D) == 7, np.nan, task.x), task.statistics, 1)
    with pytest.raises(ValueError, match=r"an update of shape \(599,\), the model has 600"):
        client.answer(task.x[1:], task.statistics, 1)
    with pytest.raises(ValueError, match=r"statistics of shape \(4,\), the model has 5"):
        client.answer(task.x, task.statistics[1:], 1)
    with pytest.raises(ValueError, match="NaN or Inf"):
        client.answer(task.x, np.full(S, np.inf), 1)
    assert client.pending is None  # none of it counts
    with pytest.raises(Refused, match="examples must be"):
        server.take(0, client.answer(task.x, task.statistics, 0))
    with pytest.raises(Refused, match="no answer"):
        server.take(0, b"")
    with pytest.raises(Refused, match="OSError: disk"):
        server.take(0, client.failure(OSError("disk")))


def test_links_that_cannot_be_are_named():
    with pytest.raises(TypeError, match="up must be a Compressor"):
        Links(up=8)
    with pytest.raises(ValueError, match="memory must be one of error, shift, none, got 'all'"):
        Links(memory="all")
    without = Links(compress.Trellis(2, unbiased=True))  # it has no omega
    with pytest.raises(TypeError, match=r'up = Trellis\(.* take its biased form, or memory="none"'):
        ends(without)
    with pytest.raises(TypeError, match=r"up = Trellis\(.* take its biased form"):
        ends(Links(compress.Trellis(2, unbiased=True), memory="shift"))
    with pytest.raises(TypeError, match=r"down = Trellis\(.* take its biased form$"):
        ends(Links(down=compress.Trellis(2, unbiased=True), memory="none"))
    assert ends(Links(compress.Trellis(2, unbiased=True), memory="none"))
    with pytest.raises(ValueError, match="seed must lie"):
        ends(PLAIN, seed=-1)
    with pytest.raises(ValueError, match="k"):
        ends(Links(compress.RandK(D + 1)))


def test_a_generator_as_a_seed_is_drawn_from_once():
    server, (client,) = ends(KINDS["eden, error"], seed=np.random.SeedSequence(5))
    play(server, [client], 3)
    assert isinstance(server.seed, int)
