"""The links of `compress.federated` on Flower (https://flower.ai): a mod of clients and a strategy of the server.

A ClientApp that trains on plain arrays stays as it is. It gets one line more, and so does its ServerApp:

    app = ClientApp(mods=[compressed(links)])

    strategy = CompressedFedAvg(links)
    strategy.start(grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=100)

Design note
-----------
A. A message carries what it would in one process, a packet of `compress.federated.links`, as the bytes of one Array
   of stype "compress.packet". A client's index, and names and shapes of the model where it needs them, are in a
   ConfigRecord beside it, "compress", which the mod takes out again.
B. A client begins with nothing: the first message it gets is the whole model. From then on both ends remember. Its
   end is in `context.state`, which Flower keeps for a run; it is written once an answer is ready, so that a round that
   fails at a client leaves no trace there. Where a state is lost, with a process or a machine, that client misses one
   round, and is sent the whole model in the next.
C. The model is a record of named arrays. Those of floats are compressed but for statistics, which are told by their
   names and averaged as float32. Integers and booleans, such as BatchNorm's counters, travel as arrays of their own
   beside the packet: where all clients say the same it is that, and otherwise their mean, rounded.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from time import perf_counter
from typing import NamedTuple

import numpy as np

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg as _FlowerFedAvg
except ImportError:
    raise ImportError('compress.federated.flower needs Flower: pip install "compress-kernels[flower]"') from None

from ..comm import Ledger
from ..compressor import positive_int
from .fedavg import Round
from .links import NO_ANSWER, Answer, ClientLink, Links, Refused, ServerLink, complete, pack, unpack

__all__ = ["CompressedFedAvg", "compressed"]

PACKET = "compress.packet"  # the stype of a packet, and its name in a record
SAID = "compress"  # the ConfigRecord beside it
STATE = "compress.link"  # a client's end of its link, in its context
_log = logging.getLogger("flwr")


# Named arrays and vectors


class Entry(NamedTuple):
    """One array of a model. kind: "x" is compressed, "s" a statistic, "i" what is not of floats."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Names:
    """Names, types and shapes of a model's arrays, in order, and how they are laid out in vectors.

    d, s: numbers in x and in statistics.
    """

    def __init__(self, entries: Iterable[Entry]):
        self.entries = tuple(entries)
        self.d, self.s = (sum(e.size for e in self.entries if e.kind == kind) for kind in "xs")

    @classmethod
    def of(cls, record: ArrayRecord, statistics: Iterable[str]) -> Names:
        """Those of a record. Raises TypeError for other numbers, ValueError where nothing is left to compress."""
        entries = []
        for name, array in record.items():
            dtype = np.dtype(array.dtype)
            if dtype.kind not in "fiub":
                raise TypeError(f"the array {name!r} is of {dtype}: floats, integers and booleans can travel")
            told = any(name == one or name.endswith(f".{one}") for one in statistics)
            kind = "i" if dtype.kind != "f" else "s" if told else "x"
            entries.append(Entry(name, str(dtype), tuple(array.shape), kind))
        names = cls(entries)
        if not names.d:
            raise ValueError(f"none of the {len(entries)} arrays is of floats to train: {[e.name for e in entries]}")
        return names

    def split(self, record: ArrayRecord) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """(x, statistics, others by name): float32 (d,), float32 (s,). ValueError for a record of another model."""
        mine = {entry.name for entry in self.entries}
        if mine != set(record):
            raise ValueError(f"arrays missing: {sorted(mine - set(record))}, unknown: {sorted(set(record) - mine)}")
        parts, others = {"x": [], "s": []}, {}
        for entry in self.entries:
            value = _checked(record[entry.name], entry)
            if entry.kind == "i":
                others[entry.name] = value
            else:
                parts[entry.kind].append(value.reshape(-1).astype(np.float32))
        x, statistics = (np.concatenate(part or [np.zeros(0, np.float32)]) for part in parts.values())
        return x, statistics, others

    def join(self, x: np.ndarray, statistics: np.ndarray, others: dict[str, np.ndarray]) -> ArrayRecord:
        """The record with these numbers, each in the type it is of."""
        record, vectors, place = ArrayRecord(), {"x": x, "s": statistics}, {"x": 0, "s": 0}
        for entry in self.entries:
            if entry.kind == "i":
                value = others[entry.name]
            else:
                begin = place[entry.kind]
                place[entry.kind] = end = begin + entry.size
                value = vectors[entry.kind][begin:end].reshape(entry.shape).astype(entry.dtype)
            record[entry.name] = Array(value)
        return record

    def others(self, record: ArrayRecord) -> dict[str, np.ndarray]:
        """What travels beside a packet. Raises ValueError where it is not there, or not as it should be."""
        mine = {entry.name: entry for entry in self.entries if entry.kind == "i"}
        if set(record) != {PACKET, *mine}:
            raise ValueError(f"beside the packet there are {sorted(set(record) - {PACKET})}, not {sorted(mine)}")
        return {name: _checked(record[name], entry) for name, entry in mine.items()}

    def text(self) -> str:
        return json.dumps(self.entries, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Names:
        return cls(Entry(name, dtype, tuple(shape), kind) for name, dtype, shape, kind in json.loads(text))


def _checked(array: Array, entry: Entry) -> np.ndarray:
    """An array's numbers, in the type it should be of."""
    try:
        value = array.numpy()
    except Exception as error:
        raise ValueError(f"the array {entry.name!r} cannot be read: {error}") from None
    dtype = np.dtype(entry.dtype)
    if value.shape != entry.shape or (value.dtype.kind == "f") != (dtype.kind == "f"):
        raise ValueError(
            f"the array {entry.name!r} is of shape {value.shape} and {value.dtype}, the model's of {entry.shape} and "
            f"{dtype}"
        )
    return value if dtype.kind == "f" else value.astype(dtype)


def _packed(blob: bytes, others: dict[str, np.ndarray]) -> ArrayRecord:
    record = ArrayRecord({PACKET: Array(dtype="uint8", shape=(len(blob),), stype=PACKET, data=blob)})
    for name, value in others.items():
        record[name] = Array(value)
    return record


def _place(content: RecordDict) -> str | None:
    """The name of the record with a packet."""
    for name, record in content.array_records.items():
        if PACKET in record and record[PACKET].stype == PACKET:
            return name
    return None


def _examples(content: RecordDict, key: str) -> tuple[str, int]:
    """(name of the MetricRecord, its number of examples). Raises ValueError unless there is one of both."""
    if len(content.metric_records) != 1:
        raise ValueError(f"an answer needs one MetricRecord, with {key!r}; there are {len(content.metric_records)}")
    (name, metrics), *_ = content.metric_records.items()
    value = metrics.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value) or value != int(value) or value < 1:
        raise ValueError(f"{key!r} in the MetricRecord must be a whole number, at least 1, got {value!r}")
    return name, int(value)


# Clients


def compressed(links: Links = Links(), seed: int = 0) -> Callable:  # noqa: B008 (it is frozen)
    """A mod for a Flower ClientApp: packets without, plain arrays within.

    links, seed: as of the server's `CompressedFedAvg`, the very same. The train function gets an ArrayRecord with the
    arrays of the model, under the name they were sent by, and returns one with the same names and shapes, and one
    MetricRecord with the number of examples, as always on Flower. Messages without a packet, such as those of an
    evaluation, pass as they are. Mods that stand left of this one see packets, those right of it arrays.

    What the link refuses (a message from a server with other links, NaN, another shape) is answered with the reason:
    the server leaves the client out of that round. What the train function raises is left to Flower, which does the
    same.

    >>> import torch
    >>> from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    >>> from flwr.clientapp import ClientApp
    >>> from compress import Kashin
    >>> from compress.federated import Links
    >>> app = ClientApp(mods=[compressed(Links(up=Kashin(3), down=Kashin(3)))])
    >>> model = torch.nn.Linear(3, 1)
    >>> @app.train()
    ... def train(message, context):
    ...     model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    ...     # ... train it on this client's 60 examples
    ...     arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": 60})
    ...     return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
    """
    if not isinstance(links, Links):
        raise TypeError(f"compressed: links must be Links, got {links!r}")
    seed = positive_int(seed, "seed", 0)

    def mod(message: Message, context, call_next) -> Message:
        place = _place(message.content)
        if place is None:
            return call_next(message, context)
        said, received, link = message.content[SAID], message.content[place], None
        try:
            link, names = _link(links, seed, said, context.state)
            task = link.receive(received[PACKET].data)
            others = names.others(received)
        except ValueError as error:
            return _failed(message, place, link, said["client"], error)
        plain = {name: record for name, record in message.content.items() if name != SAID}
        message.content = RecordDict(plain | {place: names.join(task.x, task.statistics, others)})
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        try:
            if len(reply.content.array_records) != 1:
                raise ValueError(f"an answer needs one ArrayRecord, there are {len(reply.content.array_records)}")
            (name, record), *_ = reply.content.array_records.items()
            x, statistics, others = names.split(record)
            blob = link.answer(x - task.x, statistics, _examples(reply.content, said["examples"])[1])
        except ValueError as error:
            return _failed(message, place, link, said["client"], error)
        _save(link, names, context.state)
        reply.content[name] = _packed(blob, others)
        return reply

    return mod


def _link(links, seed, said, state) -> tuple[ClientLink, Names]:
    """The client's end of its link: as it was left, or new where the server sends what is needed for that."""
    told, index = said.get("names"), said["client"]
    saved = json.loads(state[f"{STATE}.said"]["json"]) if f"{STATE}.said" in state else None
    if told is None and (saved is None or saved["index"] != index):
        raise Refused(f"client {index} has no state of its link: it was lost")
    names = Names.parse(saved["names"] if told is None else told)
    link = ClientLink(links, np.zeros(names.d), np.zeros(names.s), index, seed)
    if saved and (saved["names"], saved["index"], saved["config"]) == (names.text(), index, link.config):
        vectors = {name: array.numpy() for name, array in state[STATE].items()}
        pending = None if saved["pending"] is None else (saved["pending"], vectors.pop("pending"))
        plain = {name: saved[name] for name in saved if name not in ("names", "index")}
        link.load_state_dict(plain | vectors | {"pending": pending})
    return link, names


def _save(link: ClientLink, names: Names, state: RecordDict) -> None:
    values, vectors = link.state_dict(), {}
    if values["pending"] is not None:
        values["pending"], vectors["pending"] = values["pending"]
    vectors |= {name: values.pop(name) for name in list(values) if isinstance(values[name], np.ndarray)}
    state[STATE] = ArrayRecord({name: Array(vector) for name, vector in vectors.items()})
    saved = values | {"names": names.text(), "index": link.index}
    state[f"{STATE}.said"] = ConfigRecord({"json": json.dumps(saved)})


def _failed(message, place, link, index, error) -> Message:
    _log.warning("client %d is left out of this round: %s", index, error)
    lost = {"client": index, "failed": str(error), "lost": True}
    blob = pack(lost, []) if link is None else link.failure(error)
    return Message(RecordDict({place: _packed(blob, {})}), reply_to=message)


# The server


class CompressedFedAvg(_FlowerFedAvg):
    """Flower's FedAvg over compressed links: the protocol of `compress.federated.FedAvg`, bit for bit.

    links, seed: as of the clients' `compressed`, the very same. statistics: names, or ends of names after a dot, of
    arrays that are averaged but never compressed; [name for name, _ in model.named_buffers()] are all buffers, and
    constants of a model belong there too. options: as of flwr.serverapp.strategy.FedAvg, all of them.

    A client that answers with an error, not at all, or with what the links refuse, is left out of its round by name, in
    the log and in `rounds`, and the round goes on. Which nodes take part is Flower's choice, and evaluation is Flower's
    too: clients that evaluate are sent all arrays as they are, uncompressed and uncounted, so that where bits matter
    fraction_evaluate=0.0 and `evaluate_fn` are the way.

    ledger: bits_up and bits_down are those of packets, as in one process, and of arrays of integers; wire_up and
    wire_down the bytes of whole Flower messages, as they are serialised: beside the packet some 0.8 kB up and 1 kB
    down, another 0.5 kB for each array of integers, and names of arrays in the first message. HTTP is not in it. The
    first message to a client is the whole model.
    rounds: a `Round` for each, where clients are numbered in the order they came, `nodes` has the Flower ids of them,
    loss is the metric "loss", or else "train_loss", and metrics are all others that Flower aggregates.
    arrays: the model, as an ArrayRecord; None at first.

    What Flower passes as arrays is the model: where that is not what the last round returned, all are sent it whole.

    >>> from compress import Kashin
    >>> from compress.federated import Links
    >>> strategy = CompressedFedAvg(Links(up=Kashin(3), down=Kashin(3)), fraction_evaluate=0.0)
    >>> strategy.ledger.bits_up
    0
    """

    def __init__(
        self,
        links: Links = Links(),  # noqa: B008 (it is frozen)
        *,
        statistics: Iterable[str] = ("running_mean", "running_var"),
        seed: int = 0,
        **options,
    ):
        super().__init__(**options)
        if not isinstance(links, Links):
            raise TypeError(f"CompressedFedAvg: links must be Links, got {links!r}")
        if isinstance(statistics, str):
            raise TypeError(f"CompressedFedAvg: statistics must be several names, got the string {statistics!r}")
        self.links, self.seed, self.statistics = links, positive_int(seed, "seed", 0), tuple(statistics)
        self.server: ServerLink | None = None
        self.names: Names | None = None
        self.others: dict[str, np.ndarray] = {}
        self.nodes: list[int] = []
        self.ledger, self.rounds, self.arrays = Ledger(), [], None
        self._asked: dict[int, int] = {}  # index by node, of those who are to answer
        self._begin = perf_counter(), asdict(self.ledger)

    def summary(self) -> None:
        super().summary()
        _log.info("\t└──> %r, seed %d", self.links, self.seed)

    def _adopt(self, arrays: ArrayRecord) -> None:
        """Make these the model."""
        if arrays is self.arrays:
            return
        if self.server is None:
            self.names = Names.of(arrays, self.statistics)
            x, statistics, self.others = self.names.split(arrays)
            self.server = ServerLink(self.links, x, statistics, 0, self.seed)
        else:
            x, statistics, self.others = self.names.split(arrays)
            self.server.replace(x, statistics)
        self.arrays = arrays

    def configure_train(self, server_round, arrays, config, grid) -> Iterable[Message]:
        """A packet for each node of Flower's choice."""
        self._begin = perf_counter(), asdict(self.ledger)
        messages = list(super().configure_train(server_round, ArrayRecord(), config, grid))
        self._asked = {}
        if not messages:
            return []
        self._adopt(arrays)
        self.server.open()
        packets = {}  # those of clients that know the same are one array, which Flower stores once
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            node = message.metadata.dst_node_id
            if node not in self.nodes:
                self.nodes.append(node)
                self.server.join()
            self._asked[node] = index = self.nodes.index(node)
            knows = self.server.versions[index], self.server.heard[index]
            if knows not in packets:
                packets[knows] = _packed(self.server.packet(index), self.others)
            said = {"client": index, "examples": self.weighted_by_key}
            if knows[0] is None:
                said["names"] = self.names.text()
            records = {self.arrayrecord_key: packets[knows], SAID: ConfigRecord(said)}
            message.content = RecordDict(dict(message.content.items()) | records)
            bits, wire = self._weight(message)
            self.ledger.bits_down += bits
            self.ledger.wire_down += wire
            self.ledger.messages += 1
        return messages

    def aggregate_train(self, server_round, replies) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model moved by the mean of the answers, and Flower's mean of their metrics; None where there is none."""
        if not self._asked:
            return None, None
        came, left_out = {}, dict.fromkeys(sorted(self._asked.values()), NO_ANSWER)
        for reply in replies:
            bits, wire = self._weight(reply)
            self.ledger.bits_up += bits
            self.ledger.wire_up += wire
            self.ledger.messages += 1
            index = self._asked.pop(reply.metadata.src_node_id, None)
            if index is None:
                _log.warning("node %d was not asked, or has answered twice: ignored", reply.metadata.src_node_id)
                continue
            try:
                came[index] = reply, *self._read(reply)
            except ValueError as error:
                left_out[index] = str(error)
        came = dict(sorted(came.items()))  # whatever the order they came in
        usual = Counter(_shape(metrics) for *_, metrics in came.values()).most_common(1)
        answers: dict[int, Answer] = {}
        others, records = [], []
        for index, (reply, mine, blob, metrics) in came.items():
            try:
                if _shape(metrics) != usual[0][0]:
                    raise Refused(f"its metrics are {dict(metrics)}, others have {[name for name, _ in usual[0][0]]}")
                answers[index] = self.server.take(index, blob)
            except Refused as error:
                left_out[index] = str(error)
                continue
            del left_out[index]
            others.append(mine)
            metrics = MetricRecord(dict(metrics.items()) | {self.weighted_by_key: answers[index].examples})
            records.append(self._plain(reply, metrics))
        for index, why in left_out.items():
            _log.warning("round %d: client %d (node %d) is left out: %s", server_round, index, self.nodes[index], why)
        self._asked, metrics = {}, None
        try:
            self.server.close()
        except Refused as error:
            _log.warning("round %d: the model stays: %s", server_round, error)
            left_out, answers = left_out | dict.fromkeys(answers, str(error)), {}
        if answers:
            examples = [answer.examples for answer in answers.values()]
            self.others = {name: _mean([each[name] for each in others], examples) for name in self.others}
            self.arrays = self.names.join(self.server.x, self.server.statistics, self.others)
            metrics = self.train_metrics_aggr_fn(records, self.weighted_by_key)
        self._note(answers, left_out, metrics)
        return (self.arrays if answers else None), metrics

    def _weight(self, message: Message) -> tuple[int, int]:
        """(bits of a message's packet and arrays of integers, bytes of all of it as Flower serialises it)."""
        place, size = None if message.has_error() else _place(message.content), 0
        if place is not None:
            record = message.content[place]
            size = len(record[PACKET].data) + sum(self.others[name].nbytes for name in record if name in self.others)
        return 8 * size, sum(len(each.deflate()) for each in _objects(message).values())

    def _read(self, reply: Message) -> tuple[dict[str, np.ndarray], bytes, MetricRecord]:
        """(arrays of integers, packet, metrics) of a reply; ValueError for one without, or which says what failed."""
        if reply.has_error():
            raise Refused(reply.error.reason or f"Flower's error {reply.error.code}")
        place = _place(reply.content)
        if place is None:
            raise Refused("an answer without a packet: its ClientApp needs the mod `compressed`")
        record = reply.content[place]
        blob = record[PACKET].data
        if "failed" in unpack(blob).head:
            self.server.take(self.nodes.index(reply.metadata.src_node_id), blob)  # which raises what it says
        name, _ = _examples(reply.content, self.weighted_by_key)
        return self.names.others(record), blob, reply.content[name]

    def _plain(self, reply, metrics) -> RecordDict:
        """The records of a reply but for arrays, with these metrics in place of its own."""
        content = RecordDict(dict(reply.content.config_records.items()))
        for name in reply.content.metric_records:
            content[name] = metrics
        return content

    def _note(self, answers, left_out, metrics) -> None:
        begin, before = self._begin
        up, down = (getattr(self.ledger, name) - before[name] for name in ("bits_up", "bits_down"))
        said = {} if metrics is None else dict(metrics.items())
        names = (name for name in ("loss", "train_loss") if isinstance(said.get(name), int | float))
        loss = said.pop(next(names, None), math.nan)
        seconds = perf_counter() - begin
        self.rounds.append(Round(self.server.round, loss, up, down, list(answers), left_out, seconds, said))

    def state_dict(self) -> dict:
        """All that a later round depends on, in plain Python and NumPy. Raises ValueError before the first round."""
        if self.server is None:
            raise ValueError("CompressedFedAvg has no state before its first round")
        return {
            "server": self.server.state_dict(),
            "names": self.names.text(),
            "others": {name: value.copy() for name, value in self.others.items()},
            "nodes": list(self.nodes),
            "ledger": asdict(self.ledger),
            "rounds": [tuple(row) for row in self.rounds],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from there: start(grid, strategy.arrays, ...). Every client is sent the whole model once, as nothing is
        known of how much of its own state has survived. Raises ValueError for a state of another configuration."""
        complete(state, ("server", "names", "others", "nodes", "ledger", "rounds"), "a CompressedFedAvg")
        names = Names.parse(state["names"])
        server = ServerLink(self.links, np.zeros(names.d), np.zeros(names.s), len(state["nodes"]), self.seed)
        server.load_state_dict(state["server"])
        server.versions = [None] * server.n
        self.server, self.names, self.nodes = server, names, list(state["nodes"])
        self.others = {name: value.copy() for name, value in state["others"].items()}
        self.ledger, self.rounds = Ledger(**state["ledger"]), [Round(*row) for row in state["rounds"]]
        self.arrays = names.join(server.x, server.statistics, self.others)


def _shape(metrics: MetricRecord) -> tuple:
    """What must be the same for metrics to have a mean."""
    return tuple(sorted((name, len(value) if isinstance(value, list) else -1) for name, value in metrics.items()))


def _mean(values: list[np.ndarray], examples: list[int]) -> np.ndarray:
    """Of integers or booleans: what all say, or else the mean, rounded."""
    first = values[0]
    if all(np.array_equal(first, value) for value in values):
        return first
    return np.asarray(np.rint(np.average(values, axis=0, weights=examples)), first.dtype)


def _objects(thing) -> dict:
    """It and all it is made of, by id: each travels once in a message."""
    found = {thing.object_id: thing}
    for child in (thing.children or {}).values():
        found |= _objects(child)
    return found
