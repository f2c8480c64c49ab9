"""Links on Flower: the bits of one process, whatever fails at a client, and real processes on loopback."""

import contextlib
import copy
import importlib.util
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import compress
from compress.key import Key

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Flower's own imports use what is deprecated elsewhere
    pytest.importorskip("flwr")
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

    from compress.federated import FedAvg, Links, LocalTraining
    from compress.federated.flower import PACKET, CompressedFedAvg, Names, compressed
    from compress.federated.links import Refused

LINKS = {
    "plain": Links(),
    "error": Links(up=compress.Kashin(3), down=compress.Kashin(3)),
    "shift": Links(up=compress.Eden(1), down=compress.Eden(2), memory="shift"),
    "none": Links(up=compress.Eden(2), down=compress.Kashin(3), memory="none"),
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums in one order, and Messages that can be made outside Flower's processes."""
    with contextlib.suppress(ImportError):  # older ones need no identity
        from flwr.supercore.task_identity import TaskIdentity

        for name in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A federation in one process, without Flower's servers


class Repeatable(LocalTraining):
    """Training that needs nothing but the round, so that it is the same wherever it is done."""

    def __call__(self, model, images, labels, state, key):
        super().__call__(model, images, labels, {}, Key(7).at(key.round))
        return {}


TRAINING = Repeatable(lr=0.2, batch=8)


def new_model(seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
        )


def new_shards(sizes=(16, 40, 24)):
    rng = np.random.default_rng(3)
    return [(rng.random((m, 1, 2, 2), dtype=np.float32), rng.integers(0, 3, m)) for m in sizes]


SHARDS = new_shards()


def trained(message, shard, round):
    """What a train function does that knows nothing of compression."""
    model = new_model(1)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = (torch.as_tensor(part) for part in shard)
    TRAINING(model, images, labels, {}, Key(0).at(round))
    return ArrayRecord(model.state_dict()), MetricRecord({"num-examples": len(labels), "loss": 1.0 / len(labels)})


def reply_of(message, arrays, metrics):
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def sent(thing):
    """A message or a record as it arrives: from the bytes that Flower makes of it."""
    children = thing.children
    if children is not None:
        children = {name: sent(child) for name, child in children.items()}
    return type(thing).inflate(thing.deflate(), children)


class Federation:
    """Nodes 100, 101, .. with an app and a context each, and what a Grid does for a strategy.

    spoil: by node, a function (message, arrays, metrics) -> reply of the train function. lost: {(round, node):
    "message" or "answer"}. tampered: {(round, node): a function of the reply on its way}. bare: nodes without the mod.
    """

    def __init__(self, links, shards=SHARDS, spoil=None, lost=None, tampered=None, others=None, bare=(), seed=0):
        self.nodes = {100 + i: shard for i, shard in enumerate(shards)}
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in self.nodes}
        self.lost, self.tampered, self.round = lost or {}, tampered or {}, 0
        self.apps, self.seen, self.evaluated = {}, [], []
        for node in self.nodes:
            mine, number = (others or {}).get(node, (links, seed))
            app = self.apps[node] = ClientApp(mods=[] if node in bare else [compressed(mine, number)])
            self._register(app, node, (spoil or {}).get(node, reply_of))

    def _register(self, app, node, reply):
        @app.train()
        def train(message, context):
            self.seen.append((node, message.content))
            return reply(message, *trained(message, self.nodes[node], self.round))

        @app.evaluate()
        def evaluate(message, context):
            self.evaluated.append(message.content["arrays"])
            return Message(
                RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})}), reply_to=message
            )

    def get_node_ids(self):
        return list(self.nodes)

    def send_and_receive(self, messages, *, timeout=None):
        messages, replies = list(messages), []
        if messages and messages[0].metadata.message_type == "train":
            self.round += 1
        for message in messages:
            node = message.metadata.dst_node_id
            event = self.lost.get((self.round, node))
            if event == "message":
                continue
            context = copy.copy(self.contexts[node])
            context.state = sent(context.state)
            try:
                reply = self.apps[node](sent(message), context)
                self.contexts[node] = context
            except Exception as error:
                reply = Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)
            if event != "answer":
                replies.append(self.tampered.get((self.round, node), lambda reply: reply)(sent(reply)))
        return replies[::-1]


def strategy_of(links, **options):
    with warnings.catch_warnings():
        return CompressedFedAvg(links, **{"fraction_evaluate": 0.0, "min_train_nodes": 3} | options)


def run(strategy, federation, rounds=1, arrays=None):
    arrays = ArrayRecord(new_model().state_dict()) if arrays is None else arrays
    result = strategy.start(federation, arrays, num_rounds=rounds)
    assert not result.arrays or result.arrays is strategy.arrays
    return strategy.arrays


def numbers(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


def assert_same(one, other, but=()):
    one, other = (numbers(each) if isinstance(each, ArrayRecord) else each for each in (one, other))
    assert set(one) == set(other)
    for name in set(one) - set(but):
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def in_process(links, shards, rounds, model, training=TRAINING):
    """The same without Flower, where clients too begin with nothing."""
    fed = FedAvg(model, shards, training, links)
    fed.server.versions = [None] * len(shards)
    fed.run(rounds)
    return fed


COUNTER = "2.num_batches_tracked"


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
def test_bits_of_one_process(links):
    strategy, federation = strategy_of(links), Federation(links)
    arrays = run(strategy, federation, 4)
    fed = in_process(links, SHARDS, 4, new_model())
    expected = {name: value.numpy() for name, value in fed.server_model.state_dict().items()}
    assert_same(arrays, expected, but=[COUNTER])
    np.testing.assert_array_equal(strategy.server.view, fed.server.view)
    for mine, theirs in zip(strategy.rounds, fed.rounds, strict=True):
        assert (mine.round, mine.clients, mine.left_out) == (theirs.round, theirs.clients, {})
        # BatchNorm's counter travels here, 64 bits each way
        assert (mine.bits_up, mine.bits_down) == (theirs.bits_up + 3 * 64, theirs.bits_down + 3 * 64)
        assert mine.loss == pytest.approx(np.average([1 / 16, 1 / 40, 1 / 24], weights=[16, 40, 24]))
    ledger = strategy.ledger
    assert (ledger.bits_up, ledger.bits_down) == tuple(
        sum(getattr(row, name) for row in strategy.rounds) for name in ("bits_up", "bits_down")
    )
    assert ledger.messages == 24


def test_clients_see_plain_arrays_of_the_view():
    links = LINKS["error"]
    strategy, federation = strategy_of(links), Federation(links)
    first = ArrayRecord(new_model().state_dict())
    run(strategy, federation, 1, first)
    view = strategy.server.view
    for _, content in federation.seen:
        assert set(content) == {"arrays", "config"}
        assert_same(content["arrays"], first)
    federation.seen.clear()
    run(strategy, federation, 1, strategy.arrays)
    for _, content in federation.seen:
        x, _, _ = strategy.names.split(content["arrays"])
        np.testing.assert_array_equal(x, view)


def test_counters_are_averaged_and_statistics_not_compressed():
    links = Links(up=compress.Eden(1), down=compress.Eden(1))
    strategy, federation = strategy_of(links), Federation(links)
    arrays = numbers(run(strategy, federation))
    batches = np.array([2, 5, 3])  # of 8, in shards of 16, 40 and 24
    assert arrays[COUNTER].dtype == np.int64 and arrays[COUNTER].shape == ()
    assert arrays[COUNTER] == round(np.average(batches, weights=[16, 40, 24])) == 4
    model, means = new_model(), []
    for images, labels in SHARDS:
        client = copy.deepcopy(model)
        TRAINING(client, torch.as_tensor(images), torch.as_tensor(labels), {}, Key(0).at(1))
        means.append(client[2].running_mean.numpy())
    expected = np.average(means, axis=0, weights=[16, 40, 24])
    np.testing.assert_allclose(arrays["2.running_mean"], expected, rtol=1e-5)


def test_statistics_are_told_by_name():
    record = ArrayRecord({"scale.mean": Array(np.ones(3, np.float32)), "mean_weight": Array(np.ones(4, np.float32))})
    assert [entry.kind for entry in Names.of(record, ["mean"]).entries] == ["s", "x"]
    assert [entry.kind for entry in Names.of(record, ["scale.mean"]).entries] == ["s", "x"]
    assert [entry.kind for entry in Names.of(record, []).entries] == ["x", "x"]
    with pytest.raises(ValueError, match="none of the 2 arrays"):
        Names.of(record, ["mean", "mean_weight"])
    with pytest.raises(TypeError, match="'running_mean'"):
        CompressedFedAvg(statistics="running_mean")


def test_every_type_comes_back_as_it_went():
    values = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "double": np.array(2.5),
        "mask": np.array([True, False]),
        "small": np.array([250, 3], np.uint8),
        "large": np.array([2**60 + 1, -5]),
        "running_var": np.array([0.5], np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    record = ArrayRecord({name: Array(value) for name, value in values.items()})
    names = Names.parse(Names.of(record, ["running_var"]).text())
    assert (names.d, names.s) == (7, 1)
    assert_same(names.join(*names.split(record)), values)
    with pytest.raises(TypeError, match=r"'spin' is of complex64"):
        Names.of(ArrayRecord({"spin": Array(np.ones(2, np.complex64))}), [])


@pytest.mark.parametrize("memory", ["error", "shift"])
@pytest.mark.parametrize("event", ["message", "answer"])
def test_lost_messages_and_answers(memory, event):
    links = LINKS[memory]
    lost = {(1, 101): event, (3, 100): event, (4, 101): event}
    strategy, federation = strategy_of(links), Federation(links, lost=lost)
    views = []
    for _ in range(6):
        before = None if strategy.server is None else strategy.server.view
        run(strategy, federation, 1, strategy.arrays)
        heard = [node for node in federation.nodes if (federation.round, node) not in lost]
        row = strategy.rounds[-1]
        assert [strategy.nodes[i] for i in row.clients] == heard
        assert {strategy.nodes[i]: why for i, why in row.left_out.items()} == {
            node: "no answer" for round, node in lost if round == federation.round
        }
        views.append(before)
        if before is not None:
            for node in heard:
                state = federation.contexts[node].state["compress.link"]
                np.testing.assert_array_equal(state["view"].numpy(), before)
    if memory == "shift":
        # what both ends remember is the same; a client's newest is not confirmed yet
        for i, node in enumerate(strategy.nodes):
            state = federation.contexts[node].state["compress.link"]
            np.testing.assert_array_equal(state["pending"].numpy(), strategy.server.shifts[i])


def fail(message, arrays, metrics):
    raise RuntimeError("no power")


def changed(name, change):
    def spoil(message, arrays, metrics):
        value = change(arrays[name].numpy())
        if value is None:
            del arrays[name]
        else:
            arrays[name] = Array(value)
        return reply_of(message, arrays, metrics)

    return spoil


def with_metrics(**said):
    return lambda message, arrays, metrics: reply_of(
        message, arrays, MetricRecord({name.replace("_", "-"): value for name, value in said.items()})
    )


FAILURES = {
    "raises": (fail, "no power"),
    "nan": (changed("1.weight", lambda w: w * np.nan), "20 NaN or Inf among 53"),
    "inf statistics": (changed("2.running_mean", lambda w: w + np.inf), "NaN or Inf among 10"),
    "shape": (changed("4.weight", lambda w: w[:, :2]), r"'4.weight' is of shape \(3, 2\)"),
    "type": (changed("4.bias", lambda w: w.astype(np.int64)), "'4.bias' is of .* int64"),
    "missing": (changed("4.bias", lambda w: None), r"arrays missing: \['4.bias'\]"),
    "no examples": (with_metrics(loss=1.0), "'num-examples' in the MetricRecord"),
    "examples": (with_metrics(num_examples=0), "at least 1, got 0"),
    "fraction": (with_metrics(num_examples=2.5), "got 2.5"),
    "metrics": (with_metrics(num_examples=5, acc=[1.0, 2.0]), "its metrics are .*'acc'"),
    "records": (lambda message, arrays, metrics: Message(RecordDict(), reply_to=message), "one ArrayRecord"),
    "no metrics": (
        lambda message, arrays, metrics: Message(RecordDict({"arrays": arrays}), reply_to=message),
        "one MetricRecord",
    ),
}


@pytest.mark.parametrize(
    "said, loss, metrics",
    [
        ({"loss": 0.5, "acc": 0.25}, 0.5, {"acc": 0.25}),
        ({"train_loss": 0.25}, 0.25, {}),
        ({"loss": 0.5, "train_loss": 0.25}, 0.5, {"train_loss": 0.25}),
        ({"loss": [0.5, 1.5]}, None, {"loss": [0.5, 1.5]}),
    ],
)
def test_the_loss_of_a_row_is_said_once(said, loss, metrics):
    def says(message, arrays, _):
        return reply_of(message, arrays, MetricRecord({"num-examples": 5} | said))

    strategy = strategy_of(LINKS["plain"])
    run(strategy, Federation(LINKS["plain"], spoil=dict.fromkeys((100, 101, 102), says)), 1)
    (row,) = strategy.rounds
    assert np.isnan(row.loss) if loss is None else row.loss == loss
    assert row.metrics == metrics and str(row).count(f"loss {row.loss:.4g}") == 1


@pytest.mark.parametrize("memory", ["error", "shift"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_client_that_fails_is_left_out_by_name(failure, memory, caplog):
    links, (spoil, said) = LINKS[memory], FAILURES[failure]
    federation = Federation(links, spoil={101: spoil})
    strategy = strategy_of(links)
    got = run(strategy, federation, 2)
    for row in strategy.rounds:
        assert row.clients == [0, 2] and list(row.left_out) == [1] and re.search(said, row.left_out[1])
    assert any("client 1 (node 101) is left out" in record.getMessage() for record in caplog.records)
    # to the others it is as if that client had not answered at all
    silent = Federation(links, lost={(1, 101): "answer", (2, 101): "answer"})
    assert_same(got, run(strategy_of(links), silent, 2))
    # and one that has mended takes part again
    federation.apps[101] = silent.apps[101]
    run(strategy, federation, 1, got)
    assert strategy.rounds[-1].clients == [0, 1, 2]


def test_other_links_and_apps_without_the_mod():
    links = LINKS["error"]
    others = {101: (LINKS["plain"], 0), 102: (links, 5)}
    federation = Federation(links, SHARDS + SHARDS[:1], others=others, bare=[103])
    strategy = strategy_of(links)
    run(strategy, federation, 2)
    for row in strategy.rounds:
        assert row.clients == [0]
        assert "another configuration" in row.left_out[1] and "Identity()" in row.left_out[1]
        assert "another configuration" in row.left_out[2] and "seed 5" in row.left_out[2]
        assert "Unsupported serialization type" in row.left_out[3]


def test_an_answer_without_a_packet_and_all_failing():
    links = LINKS["error"]
    federation = Federation(links, bare=[100, 101, 102])
    for app in federation.apps.values():
        app._registered_funcs["train.default"] = lambda message, context: Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message
        )
    strategy, first = strategy_of(links), ArrayRecord(new_model().state_dict())
    result = strategy.start(federation, first, num_rounds=2)
    assert not result.train_metrics_clientapp
    assert all("needs the mod `compressed`" in why for row in strategy.rounds for why in row.left_out.values())
    assert [len(row.left_out) for row in strategy.rounds] == [3, 3] and not strategy.rounds[0].clients
    assert_same(strategy.arrays, first)


def tampering(change):
    def tamper(reply):
        record = reply.content["arrays"]
        blob = change(record[PACKET].data)
        record[PACKET] = Array("uint8", (len(blob),), PACKET, blob)
        return reply

    return tamper


def test_the_order_of_replies_changes_no_bit():
    """Nor who is left out where two kinds of metrics are as many."""
    links = LINKS["shift"]

    class Forwards(Federation):
        def send_and_receive(self, messages, *, timeout=None):
            return super().send_and_receive(messages, timeout=timeout)[::-1]

    for spoil in ({}, {101: with_metrics(num_examples=40, acc=1.0)}):
        shards = SHARDS[:2] if spoil else SHARDS
        ways = [strategy_of(links, min_train_nodes=2) for _ in range(2)]
        got = [
            run(strategy, kind(links, shards, spoil=spoil), 2)
            for strategy, kind in zip(ways, (Federation, Forwards), strict=True)
        ]
        assert_same(*got)
        assert [row.clients for row in ways[0].rounds] == [row.clients for row in ways[1].rounds]
        assert ways[0].rounds[0].clients == ([0] if spoil else [0, 1, 2])


def test_damaged_and_replayed_answers():
    links, kept = LINKS["shift"], []

    def keep(blob):
        kept.append(blob)
        return blob

    tampered = {
        (1, 100): tampering(keep),
        (2, 100): tampering(lambda blob: kept[0]),
        (3, 100): tampering(lambda blob: blob[:40] + bytes([blob[40] ^ 1]) + blob[41:]),
        (4, 100): tampering(lambda blob: b""),
    }
    strategy, federation = strategy_of(links), Federation(links, tampered=tampered)
    got = run(strategy, federation, 5)
    assert [row.clients for row in strategy.rounds] == [[0, 1, 2]] + 3 * [[1, 2]] + [[0, 1, 2]]
    said = [row.left_out.get(0, "") for row in strategy.rounds]
    assert "round 1" in said[1] and "checksum" in said[2] and "no packet" in said[3]
    lost = {(round, 100): "answer" for round in (2, 3, 4)}
    assert_same(got, run(strategy_of(links), Federation(links, lost=lost), 5))


COUNTERS = {
    "missing": (None, r"beside the packet there are \[\], not \['2.num_batches_tracked'\]"),
    "floats": (Array(np.array(2.0)), "of shape .* float64, the model's of .* int64"),
    "shape": (Array(np.arange(3)), r"of shape \(3,\)"),
    "no array": (Array("int64", (), "numpy.ndarray", b"nothing"), "'2.num_batches_tracked' cannot be read"),
}


@pytest.mark.parametrize("kind", COUNTERS)
def test_what_travels_beside_a_packet_is_checked_too(kind):
    links, (value, said) = LINKS["shift"], COUNTERS[kind]

    def tamper(reply):
        if value is None:
            del reply.content["arrays"][COUNTER]
        else:
            reply.content["arrays"][COUNTER] = value
        return reply

    strategy = strategy_of(links)
    got = run(strategy, Federation(links, tampered={(2, 100): tamper}), 3)
    assert [row.clients for row in strategy.rounds] == [[0, 1, 2], [1, 2], [0, 1, 2]]
    assert re.search(said, strategy.rounds[1].left_out[0])
    assert_same(got, run(strategy_of(links), Federation(links, lost={(2, 100): "answer"}), 3))


def test_a_mean_that_cannot_be_kept_leaves_the_model():
    links = LINKS["error"]
    strategy, federation = strategy_of(links), Federation(links)
    before = run(strategy, federation, 1)
    close = strategy.server.close

    def refuse():
        raise Refused("the mean of the updates is not finite")

    strategy.server.close = refuse
    assert run(strategy, federation, 1, before) is before
    assert strategy.rounds[1].left_out == dict.fromkeys(range(3), "the mean of the updates is not finite")
    strategy.server.close = close
    run(strategy, federation, 1, before)
    assert strategy.rounds[2].clients == [0, 1, 2]


def test_a_second_answer_and_an_unknown_node_count_for_nothing():
    links = LINKS["error"]

    class Noisy(Federation):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for reply in replies[:1]:
                stranger = sent(reply)
                stranger.metadata.__dict__["_src_node_id"] = 999
                replies += [reply, stranger]
            return replies

    strategy = strategy_of(links)
    got = run(strategy, Noisy(links), 2)
    assert all(row.clients == [0, 1, 2] and not row.left_out for row in strategy.rounds)
    assert_same(got, run(strategy_of(links), Federation(links), 2))


@pytest.mark.parametrize("memory", ["error", "shift"])
def test_a_lost_state_costs_one_round(memory):
    links = LINKS[memory]
    strategy, federation = strategy_of(links), Federation(links)
    got = run(strategy, federation, 2)
    federation.contexts[101].state = RecordDict()
    for _ in range(3):
        got = run(strategy, federation, 1, got)
    assert [row.clients for row in strategy.rounds] == [[0, 1, 2]] * 2 + [[0, 2]] + [[0, 1, 2]] * 2
    assert "client 1 has no state of its link" in strategy.rounds[2].left_out[1]
    view = federation.contexts[101].state["compress.link"]["view"].numpy()
    np.testing.assert_array_equal(view, federation.contexts[100].state["compress.link"]["view"].numpy())
    if memory == "shift":
        pending = federation.contexts[101].state["compress.link"]["pending"].numpy()
        np.testing.assert_array_equal(pending, strategy.server.shifts[1])


def test_a_client_that_comes_late_is_sent_the_model():
    links = LINKS["error"]
    strategy, federation = strategy_of(links), Federation(links, SHARDS + SHARDS[:1])
    late, federation.nodes = federation.nodes, {node: federation.nodes[node] for node in (101, 102, 103)}
    got = run(strategy, federation, 2)
    federation.nodes = late
    run(strategy, federation, 1, got)
    assert strategy.nodes == [101, 102, 103, 100]
    assert strategy.rounds[-1].clients == [0, 1, 2, 3]
    view = federation.contexts[101].state["compress.link"]["view"].numpy()
    np.testing.assert_array_equal(federation.contexts[100].state["compress.link"]["view"].numpy(), view)


@pytest.mark.parametrize("memory", LINKS)
def test_state_survives(memory):
    links = LINKS[memory]
    whole, federation = strategy_of(links), Federation(links)
    expected = run(whole, federation, 5)
    first, federation = strategy_of(links), Federation(links)
    run(first, federation, 2)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    past = copy.copy(federation)
    past.contexts = {node: copy.copy(context) for node, context in federation.contexts.items()}
    run(first, past, 1, first.arrays)  # what was saved is not touched by what comes after
    second = strategy_of(links)
    second.load_state_dict(state)
    assert_same(run(second, federation, 3, second.arrays), expected)
    assert len(second.rounds) == 5 and second.ledger.messages == 30
    assert [row.bits_up for row in second.rounds] == [row.bits_up for row in whole.rounds]
    assert second.rounds[2].bits_down >= whole.rounds[2].bits_down  # all were sent the whole model
    with pytest.raises(ValueError, match="the state is of"):
        strategy_of(links, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="before its first round"):
        strategy_of(links).state_dict()


@pytest.mark.parametrize("memory", ["error", "shift"])
def test_a_resumed_server_and_clients_that_begin_anew(memory):
    links = LINKS[memory]
    first = strategy_of(links)
    run(first, Federation(links), 2)
    second, federation = strategy_of(links), Federation(links)
    second.load_state_dict(first.state_dict())
    run(second, federation, 3, second.arrays)
    assert all(row.clients == [0, 1, 2] for row in second.rounds[3:])
    # a shift that one side has lost is not taken for the other's
    assert second.rounds[2].clients == ([] if memory == "shift" else [0, 1, 2])
    for i, node in enumerate(second.nodes):
        state = federation.contexts[node].state["compress.link"]
        if memory == "shift":
            np.testing.assert_array_equal(state["pending"].numpy(), second.server.shifts[i])


@pytest.mark.parametrize("memory", LINKS)
def test_a_new_server_and_clients_with_an_old_state(memory):
    links = LINKS[memory]
    federation = Federation(links)
    expected = run(strategy_of(links), federation, 3)
    federation.round = 0
    assert_same(run(strategy_of(links), federation, 3), expected)


def test_another_model_from_outside_is_sent_whole():
    links = LINKS["error"]
    strategy, federation = strategy_of(links), Federation(links)
    run(strategy, federation, 2)
    other = ArrayRecord(new_model(5).state_dict())
    federation.seen.clear()
    run(strategy, federation, 1, other)
    for _, content in federation.seen:
        assert_same(content["arrays"], other)
    assert strategy.rounds[-1].clients == [0, 1, 2]
    smaller = ArrayRecord({"1.weight": Array(np.ones(3, np.float32))})
    with pytest.raises(ValueError, match="arrays missing"):
        run(strategy, federation, 1, smaller)


def test_evaluation_is_left_to_flower():
    links = LINKS["error"]
    strategy, federation = strategy_of(links, fraction_evaluate=1.0), Federation(links)
    result = strategy.start(federation, ArrayRecord(new_model().state_dict()), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5
    assert len(federation.evaluated) == 3
    assert_same(federation.evaluated[0], result.arrays)


def test_the_mod_lets_plain_messages_pass():
    federation = Federation(LINKS["error"])
    with warnings.catch_warnings():
        plain = FlowerFedAvg(fraction_evaluate=0.0)
    plain.start(federation, ArrayRecord(new_model().state_dict()), num_rounds=1)
    assert len(federation.seen) == 3 and not federation.contexts[100].state


def test_wire_bytes_are_those_of_whole_messages():
    links = LINKS["error"]
    strategy = strategy_of(links)
    grid = Federation(links)
    sizes = []

    def size(thing):
        return len(thing.deflate()) + sum(size(child) for child in (thing.children or {}).values())

    messages = strategy.configure_train(1, ArrayRecord(new_model().state_dict()), ConfigRecord(), grid)
    sizes = [size(message) for message in messages]
    assert strategy.ledger.wire_down == sum(sizes)
    replies = grid.send_and_receive(messages)
    strategy.aggregate_train(1, replies)
    assert strategy.ledger.wire_up == sum(map(size, replies))
    # what Flower adds: names and ids, whatever the size of the model
    extra_up = strategy.ledger.wire_up - strategy.ledger.bits_up / 8
    extra_down = strategy.ledger.wire_down - strategy.ledger.bits_down / 8
    # 0.8 and 1 kB, and 0.5 kB for the counter; the first message has names of arrays
    assert 0 < extra_up / 3 < 1.15 * (800 + 500)
    assert 0 < extra_down / 3 < 1.15 * (1000 + 500 + len(strategy.names.text()))


def test_wrong_parameters():
    with pytest.raises(TypeError, match="links must be Links"):
        compressed(compress.Kashin(3))
    with pytest.raises(TypeError, match="links must be Links"):
        CompressedFedAvg(compress.Kashin(3))
    with pytest.raises(ValueError, match="seed"):
        CompressedFedAvg(seed=-1)
    with pytest.raises(TypeError, match="seed must be an integer, got 'a'"):
        compressed(Links(), seed="a")
    with pytest.raises(ValueError, match="no state of a CompressedFedAvg: it has no server, names"):
        CompressedFedAvg().load_state_dict({})


# Real processes

TASK = """
import numpy as np
import torch

import compress
from compress.federated import Links, LocalTraining

LINKS = Links(up=compress.Kashin(3), down=compress.Kashin(3))


class Descent(LocalTraining):
    # by hand: optimizers of torch take seconds to import

    def __call__(self, model, images, labels, state, key):
        model.train()
        for _ in range(4):
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= self.lr * p.grad
        return {}


TRAINING = Descent(lr=0.2)


def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )


def shards():
    rng = np.random.default_rng(1)
    centres = rng.random((10, 1, 8, 8))
    labels = [rng.integers(0, 10, m) for m in (200, 180)]
    return [((centres[b] + 0.3 * rng.random((len(b), 1, 8, 8))).astype(np.float32), b) for b in labels]
"""
CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from compress.federated.flower import compressed

from . import task

app = ClientApp(mods=[compressed(task.LINKS)])


@app.train()
def train(message, context):
    part = context.node_config["partition-id"]
    images, labels = (torch.as_tensor(each) for each in task.shards()[part])
    model = task.model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    task.TRAINING(model, images, labels, {}, None)
    metrics = MetricRecord({"num-examples": len(labels), "part": part})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
"""
SERVER = """
import os
import pickle
import traceback
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from compress.federated.flower import CompressedFedAvg

from . import task

app = ServerApp()


@app.main()
def main(grid, context):
    try:
        result = run(grid)
    except BaseException:
        result = {"error": traceback.format_exc()}
    path = Path(os.environ["COMPRESS_TEST_RESULT"])
    path.with_suffix(".tmp").write_bytes(pickle.dumps(result))
    path.with_suffix(".tmp").replace(path)


def run(grid):
    parts = []

    def metrics(records, key):
        parts.append([record["metrics"]["part"] for record in records])
        return aggregate_metricrecords(records, key)

    strategy = CompressedFedAvg(task.LINKS, fraction_evaluate=0.0, train_metrics_aggr_fn=metrics)
    result = strategy.start(grid, ArrayRecord(task.model().state_dict()), num_rounds=3, timeout=300)
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    return {"arrays": arrays, "parts": parts} | strategy.state_dict()
"""
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "overlinks"
version = "1.0.0"
description = "FedAvg over compressed links"
license = "BSD-3-Clause"
dependencies = []

[tool.flwr.app]
publisher = "compress"

[tool.flwr.app.components]
serverapp = "overlinks.server:app"
clientapp = "overlinks.client:app"

[tool.flwr.app.config]
"""


class Processes:
    """Processes with a log each, at the end all of them are ended, with all they started."""

    def __init__(self, folder, environment):
        self.folder, self.environment, self.running = folder, environment, {}

    def start(self, name, *command):
        program = Path(sys.executable).parent / command[0]
        with open(self.folder / f"{name}.log", "wb") as log:
            self.running[name] = subprocess.Popen(
                [str(program), *command[1:]],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.running[name]

    def logs(self):
        return "\n".join(f"== {name}\n{self.log(name)}" for name in self.running)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ours = {process.pid for process in self.running.values()}
        while more := {pid for pid, parent in parents().items() if parent in ours} - ours:
            ours |= more  # Flower starts some in sessions of their own
        for process in self.running.values():
            process.terminate()
        end = time.monotonic() + 4
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        for pid in ours & parents().keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.running.values():
            process.wait(5)


def parents():
    """The parent of every process there is."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


def free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_three_rounds_on_real_processes(tmp_path):
    # 85 s are twice what it takes; longer only where other work already fills the machine
    deadline = time.monotonic() + 85 * min(4.0, max(1.0, os.getloadavg()[0] / os.cpu_count()))
    app, home, result = tmp_path / "overlinks", tmp_path / "home", tmp_path / "result.pickle"
    (app / "overlinks").mkdir(parents=True)
    home.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in (("__init__", ""), ("task", TASK), ("client", CLIENT), ("server", SERVER)):
        (app / "overlinks" / f"{name}.py").write_text(text)
    port, *ports = free_ports(3)
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(compress.__file__).parent.parent),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "COMPRESS_TEST_RESULT": str(result),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    with Processes(tmp_path, environment) as processes:
        host = ("--insecure", "--host", "127.0.0.1")
        processes.start(
            "superlink", "flower-superlink", *host, "--port", str(port), "--disable-runtime-dependency-installation"
        )
        for part, own in enumerate(ports):
            config = f"partition-id={part}"
            processes.start(
                f"node{part}",
                *("flower-supernode", *host, "--port", str(own), "--superlink", address, "--node-config", config),
            )
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        submitted = processes.start("run", "flwr", "run", str(app), "here")
        while not result.exists():
            gone = [name for name, process in processes.running.items() if process.poll() not in (None, 0)]
            assert not gone, f"{gone} ended\n{processes.logs()}"
            assert time.monotonic() < deadline, f"no result in time\n{processes.logs()}"
            time.sleep(0.1)
        assert submitted.wait(5) == 0
    said = pickle.loads(result.read_bytes())
    assert "error" not in said, said["error"]

    spec = importlib.util.spec_from_file_location("overlinks_task", app / "overlinks" / "task.py")
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    order = said["parts"][0]  # which node came to be which client
    assert sorted(order) == [0, 1] and said["parts"] == [order] * 3
    fed = in_process(task.LINKS, [task.shards()[part] for part in order], 3, task.model(), task.TRAINING)
    expected = {name: value.numpy() for name, value in fed.server_model.state_dict().items()}
    assert_same(said["arrays"], expected, but=[COUNTER])
    assert said["arrays"][COUNTER] == 3 * 4  # steps
    rows = [(row[2], row[3], row[4], row[5]) for row in said["rounds"]]
    assert rows == [(row.bits_up + 2 * 64, row.bits_down + 2 * 64, [0, 1], {}) for row in fed.rounds]
    assert said["ledger"]["bits_up"] == fed.comm.ledger.bits_up + 6 * 64
    assert said["ledger"]["bits_down"] == fed.comm.ledger.bits_down + 6 * 64
