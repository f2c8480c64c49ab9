"""Links: compressed packets between a server and clients that come and go.

Design note
-----------
A. The server has the model w, and v, the view: what clients hold of it, the same bits on all of them. A new version of
   v is v + C(w - v), one message for all; what C leaves out stays in w - v for the next. A client that has missed
   versions, or whose answer has, is sent the messages since the last one it is known to have, of which it takes those
   that are new to it; or v as it is, where that is shorter. Its checksum travels with it.
B. Clients answer with updates of v. What a compressor leaves out of them is kept by its client (memory="error", Stich
   et al. 2018), or compared with a shift that client and server both move (memory="shift"): DIANA (Mishchenko et al.
   2019) where the compressor is unbiased, EF21 (Richtarik et al. 2021) where it is contractive.
C. An answer may be lost on its way. What it did to the client's memory counts only once the server has said, in its
   next packet, that it has come in; until then the client keeps both states. So has the server's shift moved with it.
D. A packet is self-contained: round, version, configuration, lengths, checksum. It is the same in one process, on MPI
   and on Flower, and all of it is counted.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..combine import Scaled
from ..compressor import Compressor, Contractive, Identity, Message, Unbiased, positive_int
from ..key import Key

MAGIC, VERSION = b"CMPP", 1
_HEAD, _CHECK = struct.Struct("<4sBI"), struct.Struct("<I")
_PLAIN, _KEY, _FLOAT = Identity(), Key(0), np.dtype(np.float32)
_DOWN, _UP = 0x646F776E, 0x7570  # sub-streams of a round's key
MEMORIES = ("error", "shift", "none")


class Refused(ValueError):
    """A packet that is not what the protocol expects now: damaged, of another round, model or configuration."""


# Packets


class Packet(NamedTuple):
    """head: what JSON carries. messages: in order."""

    head: dict
    messages: list[Message]


def pack(head: dict, messages: list[Message]) -> bytes:
    """A packet as bytes: "CMPP", u8 version, u32 header length, header (JSON), payloads, u32 crc32; little-endian.

    >>> unpack(pack({"round": 3}, [])).head["round"]
    3
    """
    said = json.dumps(head | {"messages": [[m.bits, m.size] for m in messages]}, separators=(",", ":")).encode()
    body = b"".join((_HEAD.pack(MAGIC, VERSION, len(said)), said, *(m.payload.tobytes() for m in messages)))
    return body + _CHECK.pack(zlib.crc32(body))


def unpack(blob: bytes) -> Packet:
    """The packet in these bytes; `Refused`, with what is wrong, where they are none."""
    blob = bytes(blob)
    if len(blob) < _HEAD.size + _CHECK.size or blob[:4] != MAGIC:
        raise Refused(f"no packet: {len(blob)} bytes that start with {blob[:4]!r}")
    _, version, length = _HEAD.unpack_from(blob)
    if version != VERSION:
        raise Refused(f"packet of version {version}, this library reads {VERSION}")
    body, (check,) = blob[: -_CHECK.size], _CHECK.unpack_from(blob, len(blob) - _CHECK.size)
    if zlib.crc32(body) != check:
        raise Refused("packet: checksum does not match, some bytes were changed or are missing")
    try:
        head = json.loads(body[_HEAD.size : _HEAD.size + length])
        lengths = [(positive_int(b, "bits", 0, 2**48), positive_int(s, "size", 0, 2**48)) for b, s in head["messages"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"packet: its header is not one this library writes: {error}") from None
    place, messages = _HEAD.size + length, []
    for bits, size in lengths:
        end = place + -(-bits // 8)
        messages.append(Message(np.frombuffer(body[place:end], np.uint8), bits, size, _FLOAT))
        place = end
    if place != len(body):
        raise Refused(f"packet: {len(body)} bytes, its lengths say {place}")
    return Packet(head, messages)


# What both sides agree on


@dataclass(frozen=True)
class Links:
    """How a server and its clients talk.

    up, down: compressors of updates and of the model. An unbiased one is used as Scaled(it) wherever its errors are
    kept: down, and up with memory="error".
    memory: of what updates leave out: "error", "shift" or "none" (notes B and C of the module).

    Raises TypeError for what is no Compressor, ValueError for another memory.

    >>> import compress
    >>> Links(up=compress.Kashin(3), down=compress.Eden(1)).up
    Kashin(levels=3, redundancy=1.25, frame=4096)
    """

    up: Compressor = _PLAIN
    down: Compressor = _PLAIN
    memory: str = "error"

    def __post_init__(self):
        for name in ("up", "down"):
            if not isinstance(getattr(self, name), Compressor):
                raise TypeError(f"Links: {name} must be a Compressor, got {getattr(self, name)!r}")
        if self.memory not in MEMORIES:
            raise ValueError(f"Links: memory must be one of {', '.join(MEMORIES)}, got {self.memory!r}")

    @property
    def encoder_up(self) -> Compressor:
        """What updates are encoded with."""
        return _contractive(self.up) if self.memory == "error" else self.up

    @property
    def encoder_down(self) -> Compressor:
        """What changes of the view are encoded with."""
        return _contractive(self.down)

    def shift_step(self, d: int) -> float:
        """By how much of a decoded message a shift moves: 1/(1 + omega), or 1 for a contractive compressor."""
        return 1 / (1 + self.up.omega(d)) if isinstance(self.up, Unbiased) else 1.0

    def fingerprint(self, d: int, statistics: int, seed: int) -> str:
        """What both sides must have the same."""
        return f"{self!r}, d = {d}, {statistics} statistics, seed {seed}"


def _contractive(compressor):
    if isinstance(compressor, Contractive) or compressor == _PLAIN:
        return compressor
    return Scaled(compressor)


def checksum(x: np.ndarray) -> int:
    """crc32 of a vector's bytes."""
    return zlib.crc32(x)


def _up_key(seed, round, client):
    return Key(seed).at(round).worker(client).fold(_UP)


def _down_key(seed, version):
    return Key(seed).at(version).fold(_DOWN)


def _decoded(compressor, message, key, d, what):
    """The vector in a message of d coordinates; `Refused` for another length, no message, NaN."""
    if message.size != d:
        raise Refused(f"{what} of {message.size} numbers, {d} are expected")
    try:
        x = compressor.decode(message, key)
    except ValueError as error:
        raise Refused(f"{what} cannot be decoded: {error}") from None
    if not np.isfinite(x).all():
        raise Refused(f"{what} has {np.count_nonzero(~np.isfinite(x))} numbers that are not finite")
    return x


def _plain(x):
    return _PLAIN.encode(np.ascontiguousarray(x, np.float32), _KEY)


# The server


class Answer(NamedTuple):
    """What a client has sent: its update and statistics, float32, the number of its examples, and what it measured."""

    update: np.ndarray
    statistics: np.ndarray
    examples: int
    metrics: dict


class ServerLink:
    """The server's end of all links.

    links: a Links. x: the model that clients start from, float32 (d,). statistics: beside it, what is averaged and
    never compressed, such as BatchNorm's, float32 (s,). n: clients. seed: of all randomness of the links.

    A round is `open`, `packet` for each client, `take` for each answer, and `close`.
    """

    def __init__(self, links: Links, x: np.ndarray, statistics: np.ndarray, n: int, seed: int = 0):
        self.links, self.n, self.seed = links, positive_int(n, "n"), seed
        self.x, self.view = np.array(x, np.float32), np.array(x, np.float32)
        self.statistics = np.array(statistics, np.float32)
        self.round = self.version = 0
        self.log: dict[int, Message] = {}  # by the version they lead to
        self.versions: list[int | None] = [0] * self.n  # of the clients, None where it is not known
        self.heard: list[int | None] = [None] * self.n  # the last round whose answer came in
        self.shifts = [None] * self.n
        self.config = links.fingerprint(self.x.size, self.statistics.size, seed)

    def open(self) -> None:
        """Begin a round: a new version of the view where the model has moved."""
        self.round += 1
        difference = self.x - self.view
        if not difference.any():
            return
        self.version += 1
        encoder, key = self.links.encoder_down, _down_key(self.seed, self.version)
        message = self.log[self.version] = encoder.encode(difference, key)
        self.view += encoder.decode(message, key)
        total = 0
        for version in sorted(self.log, reverse=True):  # older ones would never be shorter than the view itself
            total += self.log[version].bits
            if total > 8 * self.view.nbytes:
                del self.log[version]

    def packet(self, client: int) -> bytes:
        """What this client needs to be where all are."""
        known = self.versions[client]
        missed = range(self.version + 1) if known is None else range(known + 1, self.version + 1)
        whole = any(version not in self.log for version in missed)
        messages = [_plain(self.view)] if whole else [self.log[version] for version in missed]
        if self.statistics.size:
            messages.append(_plain(self.statistics))
        head = {"config": self.config, "round": self.round, "version": self.version, "crc": checksum(self.view)}
        return pack(head | {"whole": whole, "base": known, "heard": self.heard[client]}, messages)

    def take(self, client: int, blob: bytes) -> Answer:
        """What a client's packet says; `Refused`, with the reason, for one that is not of this round, or for none."""
        if not len(blob):
            raise Refused("no answer")
        head, messages = unpack(blob)
        if "failed" in head:
            if head.get("lost"):
                self.versions[client] = None  # what comes next is the whole view
            raise Refused(str(head["failed"]))
        d, s = self.x.size, self.statistics.size
        try:
            config, round, who = head["config"], head["round"], head["client"]
            examples, metrics = positive_int(head["examples"], "examples"), dict(head["metrics"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"packet without {error}") from None
        if config != self.config:
            raise Refused(f"another configuration: {config}; the server has {self.config}")
        if (round, who) != (self.round, client):
            raise Refused(f"an answer of client {who} to round {round}; this is client {client}, round {self.round}")
        if len(messages) != 1 + bool(s):
            raise Refused(f"{len(messages)} messages, {1 + bool(s)} are expected")
        update = _decoded(self.links.encoder_up, messages[0], _up_key(self.seed, round, client), d, "an update")
        statistics = _decoded(_PLAIN, messages[1], _KEY, s, "statistics") if s else self.statistics
        if self.links.memory == "shift":
            h = self.shifts[client] if self.shifts[client] is not None else np.zeros_like(update)
            self.shifts[client] = h + np.float32(self.links.shift_step(d)) * update
            update = h + update
        self.versions[client], self.heard[client] = self.version, self.round
        return Answer(update, statistics, examples, metrics)

    def close(self, answers: dict[int, Answer], weights: str = "examples") -> None:
        """End the round: the model moves by the mean of the updates, weighted by examples or "uniform"."""
        if not answers:
            return
        share = np.array([a.examples if weights == "examples" else 1.0 for a in answers.values()])
        share = np.float32(share / share.sum())
        if self.statistics.size:
            self.statistics = sum(p * a.statistics for p, a in zip(share, answers.values(), strict=True))
        for p, answer in zip(share, answers.values(), strict=True):
            self.x += p * answer.update

    def state_dict(self) -> dict:
        """All that a later round depends on, in plain Python and NumPy."""
        log = {version: (message.payload, message.bits, message.size) for version, message in self.log.items()}
        names = ("config", "round", "version", "x", "view", "statistics", "versions", "heard", "shifts")
        return {name: _copied(getattr(self, name)) for name in names} | {"log": log}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there. Raises ValueError for a state of another configuration, or of other clients."""
        if state["config"] != self.config or len(state["versions"]) != self.n:
            raise ValueError(
                f"the state is of {len(state['versions'])} clients and {state['config']}; this server has "
                f"{self.n} and {self.config}"
            )
        for name, value in state.items():
            if name != "log":
                setattr(self, name, _copied(value))
        self.log = {version: Message(*fields, _FLOAT) for version, fields in state["log"].items()}


def _copied(value):
    if isinstance(value, np.ndarray):
        return value.copy()
    return [_copied(each) for each in value] if isinstance(value, list) else value


# A client


class Task(NamedTuple):
    """What a client is to start from in a round: the view and statistics, float32, its own to change."""

    round: int
    x: np.ndarray
    statistics: np.ndarray


class ClientLink:
    """A client's end of its link: it survives from round to round, in memory or as `state_dict`.

    links, x, statistics, seed: as of the server, the very same. index: which client it is.
    """

    def __init__(self, links: Links, x: np.ndarray, statistics: np.ndarray, index: int, seed: int = 0):
        self.links, self.index, self.seed = links, index, seed
        self.view, self.statistics = np.array(x, np.float32), np.array(statistics, np.float32)
        self.version, self.round, self.lost = 0, 0, False
        self.memory = np.zeros(0, np.float32)  # what was left out, or the shift; of no size while that is zero
        self.pending: tuple[int, np.ndarray] | None = None  # (round, memory after its answer)
        self.config = links.fingerprint(self.view.size, self.statistics.size, seed)

    def receive(self, blob: bytes) -> Task:
        """Start a round. Raises `Refused` for a packet that does not lead to the server's view."""
        head, messages = unpack(blob)
        try:
            config, round, version, crc = (head[name] for name in ("config", "round", "version", "crc"))
            whole, base, heard = (head[name] for name in ("whole", "base", "heard"))
        except KeyError as error:
            raise Refused(f"packet without {error}") from None
        if config != self.config:
            raise Refused(f"another configuration: {config}; client {self.index} has {self.config}")
        d, s = self.view.size, self.statistics.size
        statistics = _decoded(_PLAIN, messages.pop(), _KEY, s, "statistics") if s else self.statistics
        if whole:
            view = _decoded(_PLAIN, messages[0], _KEY, d, "the model")
        else:
            if not base <= self.version <= version or len(messages) != version - base:
                self.lost = True
                raise Refused(f"changes from version {base} to {version}; client {self.index} has {self.version}")
            view = self.view.copy()
            for number in range(self.version + 1, version + 1):
                message, key = messages[number - base - 1], _down_key(self.seed, number)
                view += _decoded(self.links.encoder_down, message, key, d, "a change of the model")
        if checksum(view) != crc:
            self.lost = True
            raise Refused(f"client {self.index}: version {version} of the model has another checksum")
        if self.pending is not None and heard == self.pending[0]:
            self.memory = self.pending[1]
        self.pending = None
        self.view, self.statistics, self.version, self.round, self.lost = view, statistics, version, round, False
        return Task(round, view.copy(), statistics.copy())

    def answer(self, update: np.ndarray, statistics: np.ndarray, examples: int, metrics: dict | None = None) -> bytes:
        """The packet with x - view after local training, what statistics are now, the number of examples and whatever
        else is to be known. Raises ValueError for NaN and other shapes."""
        d, links = self.view.size, self.links
        update = np.ascontiguousarray(update, np.float32)
        if update.shape != (d,):
            raise ValueError(f"client {self.index}: an update of shape {update.shape}, the model has {d} numbers")
        encoder, key = links.encoder_up, _up_key(self.seed, self.round, self.index)
        memory = self.memory if self.memory.size else np.zeros(d, np.float32)
        sent = update if links.memory == "none" else update + memory if links.memory == "error" else update - memory
        message = encoder.encode(sent, key)
        if links.memory == "error":
            memory = encoder.decode_add(message, key, sent, -1.0)
        elif links.memory == "shift":
            memory = memory + np.float32(links.shift_step(d)) * encoder.decode(message, key)
        self.pending = self.round, memory if links.memory != "none" else self.memory
        head = {"config": self.config, "round": self.round, "client": self.index, "examples": int(examples)}
        messages = [message, _plain(statistics)] if self.statistics.size else [message]
        return pack(head | {"metrics": metrics or {}}, messages)

    def failure(self, error: Exception) -> bytes:
        """The packet that says why there is no answer."""
        said = f"{type(error).__name__}: {error}"[:1000]
        return pack({"client": self.index, "failed": said, "lost": self.lost}, [])

    def state_dict(self) -> dict:
        """All that a later round depends on, in plain Python and NumPy."""
        names = ("config", "round", "version", "lost", "view", "statistics", "memory")
        return {name: _copied(getattr(self, name)) for name in names} | {"pending": self.pending}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there. Raises ValueError for a state of another configuration."""
        if state["config"] != self.config:
            raise ValueError(f"the state is of {state['config']}; client {self.index} has {self.config}")
        for name, value in state.items():
            setattr(self, name, _copied(value))
