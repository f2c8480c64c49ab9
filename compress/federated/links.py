"""Links: compressed packets between a server and clients that come and go.

Design note
-----------
A. The server has the model w, and v, the view: what clients hold of it, the same bits on all of them. At the end of a
   round v becomes v + C(w - v), one message for all; what C leaves out stays in w - v for the next. A client that has
   missed versions, or whose answer has, is sent the messages since the last one it is known to have, of which it takes
   those that are new to it; or v as it is, where that is shorter. Its checksum travels with it. With nothing to
   compress v is w, and travels as it is. All begin with the same model, which is never sent: the first round costs a
   header down, and what the last one has made of v waits for the next.
B. Clients answer with updates of v. What a compressor leaves out of them is kept by its client (memory="error", Stich
   et al. 2018), or compared with a shift that client and server both move (memory="shift"): DIANA (Mishchenko et al.
   2019) where the compressor is unbiased, EF21 (Richtarik et al. 2021) where it is contractive.
C. An answer may be lost on its way. What it did to the client's memory counts only once the server has said, in its
   next packet, that it has come in; until then the client keeps both states. So has the server's shift moved with it.
   An update that is in no mean, since the mean was refused, has not come in; a shift, which is an estimate, may move.
   A client that finds itself elsewhere than the server thinks, since one of them has lost its state or gone back to an
   older one, says so ("lost"), and both begin anew: the whole view, and shifts of zero.
D. A packet is self-contained: round, version, checksum of the configuration, lengths, checksum. It is the same in one
   process, on MPI and on Flower, and all of it is counted.
E. Vectors are replaced, never written to: states can be held, saved and shared without a copy. A client keeps v, its
   memory, and that after an answer which may be lost: 3 d numbers, 1 d with memory="none"; the server w, v, at most
   another d of messages, and n d of shifts. In a round it has besides, and writes to, the mean of what it has taken
   so far: d, whatever n. The bits of a mean are those of the order in which answers are taken: that of clients.
F. w - v is still to come in what starts from v. Where a client goes only a share `pull` of its way to v before it
   starts, as in a mixture (`fedavg`, note C), x_i has no more than this share of the error v - w in it. So w becomes
   v + pull (w - v) + mean (x_i - v), with the mean of shares: FedAvg for 1, and the mean of x_i for 0.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..combine import Scaled, contractive
from ..compressor import Compressor, Identity, Message, Unbiased, positive_int
from ..key import Key

MAGIC, VERSION = b"CMPP", 1
_HEAD, _CHECK = struct.Struct("<4sBI"), struct.Struct("<I")
_PLAIN, _KEY, _FLOAT = Identity(), Key(0), np.dtype(np.float32)
_DOWN, _UP = 0x646F776E, 0x7570  # sub-streams of a round's key
_KNOWN = "base", "heard"  # what the server knows of a client: its version, and the last round whose answer came in
_ANSWER = "config", "round", "client", "examples", "metrics"  # what an answer says
MEMORIES = ("error", "shift", "none")
NO_ANSWER = "no answer"  # why a client that was not heard is in no mean


class Refused(ValueError):
    """A packet that is not what the protocol expects now: damaged, of another round, model or configuration."""


# Packets


class Packet(NamedTuple):
    """head: what JSON carries. messages: in order."""

    head: dict
    messages: list[Message]


def pack(head: dict, messages: list[Message]) -> bytes:
    """A packet as bytes: "CMPP", u8 version, u32 header length, header (JSON), payloads, u32 crc32; little-endian.

    Numbers of NumPy and torch are numbers of the header; TypeError for what is none, nor JSON.

    >>> unpack(pack({"round": 3}, [])).head["round"]
    3
    """
    head = head | {"messages": [[m.bits, m.size] for m in messages]}
    said = json.dumps(head, separators=(",", ":"), default=_number).encode()
    body = b"".join((_HEAD.pack(MAGIC, VERSION, len(said)), said, *(m.payload.tobytes() for m in messages)))
    return body + _CHECK.pack(zlib.crc32(body))


def _number(value):
    """For JSON: what is a number elsewhere."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is neither a number nor anything else that JSON has")


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
    kept: down, and up with memory="error". RandK is much worse there than TopK or Eden of as many bits:
    scaled by k/d, it brings what was left out too late.
    memory: of what updates leave out: "error", "shift" or "none" (notes B and C of the module).

    Raises TypeError for what is no Compressor, ValueError for another memory.

    >>> import compress
    >>> Links(up=compress.Kashin(3), down=compress.Eden(1)).up
    Kashin(levels=3, redundancy=1.25, iterations=None)
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
        return contractive(self.up) if self.memory == "error" else self.up

    @property
    def encoder_down(self) -> Compressor:
        """What changes of the view are encoded with."""
        return contractive(self.down)

    def shift_step(self, d: int) -> float:
        """By how much of a decoded message a shift moves: 1/(1 + omega), or 1 for a contractive compressor."""
        return 1 / (1 + self.up.omega(d)) if isinstance(self.up, Unbiased) else 1.0

    def check(self, d: int) -> None:
        """Raise here what a compressor has against vectors of d coordinates: TypeError where it has no omega and one is
        needed, ValueError for its parameters."""
        for name, encoder in (("up", self.encoder_up), ("down", self.encoder_down)):
            encoder.bits(d)
            try:
                if isinstance(encoder, Scaled):
                    encoder.alpha(d)
                if name == "up" and self.memory == "shift":
                    self.shift_step(d)
            except TypeError:
                other = ', or memory="none"' if name == "up" else ""
                raise TypeError(
                    f"Links: {name} = {getattr(self, name)!r} has no omega, by which its errors would be scaled: take "
                    f"its biased form{other}"
                ) from None

    def fingerprint(self, d: int, statistics: int, seed: int) -> str:
        """What both sides must have the same."""
        return f"{self!r}, d = {d}, {statistics} statistics, seed {seed}"


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
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            x = compressor.decode(message, key)
    except ValueError as error:
        raise Refused(f"{what} cannot be decoded: {error}") from None
    if not np.isfinite(x).all():
        raise Refused(f"{what} has {np.count_nonzero(~np.isfinite(x))} numbers that are not finite")
    return x


def _digest(config: str) -> str:
    """What travels for a configuration."""
    return f"{zlib.crc32(config.encode()):08x}"


def complete(state: dict, names, whose: str) -> None:
    """ValueError for a state where one of these is missing, as in that of something else."""
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"this is no state of {whose}: it has no {', '.join(missing)}")


def _plain(x):
    return _PLAIN.encode(np.ascontiguousarray(x, np.float32), _KEY)


# The server


class Answer(NamedTuple):
    """What a client has sent beside its update: the number of its examples, and what it measured."""

    examples: int
    metrics: dict


class _Mean:
    """The mean of what has been taken in a round: d + s numbers, whatever n.

    away: the mean of 1 - pull (note F). heard: what the server knew of clients before they were taken.
    """

    def __init__(self, d: int, statistics: np.ndarray, weights: str):
        self.update, self.statistics, self.weights = np.zeros(d, np.float32), statistics.copy(), weights
        self.weight, self.away, self.heard = 0, 0.0, {}

    def add(self, examples: int, update: np.ndarray, statistics: np.ndarray, pull: float) -> None:
        weight = examples if self.weights == "examples" else 1
        self.weight += weight
        part = np.float32(weight / self.weight)
        self.update *= 1 - part
        self.update += part * update
        with np.errstate(over="ignore", invalid="ignore"):  # `close` looks at what comes of it
            self.statistics += part * (statistics - self.statistics)  # what is the same everywhere stays to the bit
        self.away += float(part) * (1 - pull - self.away)


class ServerLink:
    """The server's end of all links.

    links: a Links. x: the model that clients start from, float32 (d,). statistics: beside it, what is averaged and
    never compressed, such as BatchNorm's, float32 (s,). n: clients that have x already; others `join`. seed: of all
    randomness of the links.

    A round is `open`, `packet` for each client, `take` for each answer, in the order of clients, and `close`.

    Raises TypeError or ValueError for other n and seeds, and where links do not suit d.
    """

    def __init__(self, links: Links, x: np.ndarray, statistics: np.ndarray, n: int, seed: int = 0):
        self.links, self.n, self.seed = links, positive_int(n, "n", 0), Key(seed).seed
        self.x, self.view = np.array(x, np.float32), np.array(x, np.float32)
        self.statistics = np.array(statistics, np.float32)
        self.round = self.version = 0
        self.log: dict[int, Message] = {}  # by the version they lead to
        self.versions: list[int | None] = [0] * self.n  # of the clients, None where it is not known
        self.heard: list[int | None] = [None] * self.n  # the last round whose answer came in
        self.shifts = [None] * self.n
        self.config = links.fingerprint(self.x.size, self.statistics.size, self.seed)
        links.check(self.x.size)
        self._between_rounds()

    def _between_rounds(self) -> None:
        self._mean: _Mean | None = None
        self._packets: dict[tuple, bytes] = {}  # of this round, by what their clients know
        self._crc: int | None = None  # of the view, once it is asked for

    def join(self) -> int:
        """One client more, of which nothing is known: its index. Its first packet is the whole model."""
        for each in (self.versions, self.heard, self.shifts):
            each.append(None)
        self.n += 1
        return self.n - 1

    def replace(self, x: np.ndarray, statistics: np.ndarray) -> None:
        """Go on with another model of the same shape: all clients are sent the whole of it."""
        self.x, self.statistics = np.array(x, np.float32), np.array(statistics, np.float32)
        self._advance(self.version + 1, self.x, None)
        self._between_rounds()

    def open(self, weights: str = "examples") -> None:
        """Begin a round, whose mean is weighted by "examples" or "uniform"."""
        self.round += 1
        self._between_rounds()
        self._mean = _Mean(self.x.size, self.statistics, weights)

    def packet(self, client: int) -> bytes:
        """What this client needs to be where all are: the same bytes for all that know the same."""
        knows = self.versions[client], self.heard[client]
        if knows not in self._packets:
            self._packets[knows] = self._packet(*knows)
        return self._packets[knows]

    def _packet(self, known, heard) -> bytes:
        missed = range(self.version + 1) if known is None else range(known + 1, self.version + 1)
        whole = any(version not in self.log for version in missed)
        messages = [_plain(self.view)] if whole else [self.log[version] for version in missed]
        if self.statistics.size:
            messages.append(_plain(self.statistics))
        head = {"config": _digest(self.config), "round": self.round, "version": self.version}
        self._crc = head["crc"] = checksum(self.view) if self._crc is None else self._crc
        return pack(head | {"whole": whole, "base": known, "heard": heard}, messages)

    def _addressed(self, client, head) -> None:
        """`Refused` where a header says that it is of another configuration, round or client."""
        mine = _digest(self.config)
        config, round, who = head.get("config", mine), head.get("round", self.round), head.get("client", client)
        if config != mine:
            raise Refused(f"an answer of another configuration, {config}, than {mine}: {self.config}")
        if (round, who) != (self.round, client):
            raise Refused(f"an answer of client {who} to round {round}; this is client {client}, round {self.round}")

    def take(self, client: int, blob: bytes) -> Answer:
        """Take a client's packet into the mean of this round, and say what is beside its update; `Refused`, with the
        reason, for one that is not of this round, or for none."""
        if not len(blob):
            raise Refused(NO_ANSWER)
        head, messages = unpack(blob)
        self._addressed(client, head)
        if "failed" in head:
            if head.get("lost"):  # both begin anew
                self.versions[client] = None
                if self.links.memory == "shift":
                    self.shifts[client] = self.heard[client] = None
            raise Refused(str(head["failed"]))
        if missing := [name for name in _ANSWER if name not in head]:
            raise Refused(f"packet without {', '.join(missing)}")
        try:
            examples, metrics = positive_int(head["examples"], "examples", 1, 2**48), dict(head["metrics"])
            pull = float(head.get("pull", 1))
        except (TypeError, ValueError, OverflowError) as error:
            raise Refused(f"packet: {error}") from None
        if not 0 <= pull <= 1:
            raise Refused(f"packet: pull must lie in [0, 1], got {pull}")
        if self.heard[client] == self.round:
            raise Refused(f"a second answer of client {client} to round {self.round}")
        if self._mean is None:
            raise Refused(f"an answer of client {client} to round {self.round}, which is over")
        d, s = self.x.size, self.statistics.size
        if len(messages) != 1 + bool(s):
            raise Refused(f"{len(messages)} messages, {1 + bool(s)} are expected")
        update = _decoded(self.links.encoder_up, messages[0], _up_key(self.seed, self.round, client), d, "an update")
        statistics = _decoded(_PLAIN, messages[1], _KEY, s, "statistics") if s else self.statistics
        if self.links.memory == "shift":
            h = self.shifts[client] if self.shifts[client] is not None else np.zeros_like(update)
            with np.errstate(over="ignore", invalid="ignore"):
                shift, update = h + np.float32(self.links.shift_step(d)) * update, h + update
            if not (np.isfinite(shift).all() and np.isfinite(update).all()):
                raise Refused("an update that is not finite with the shift it is added to")
            self.shifts[client] = shift
        self._mean.add(examples, update, statistics, pull)
        self._mean.heard[client] = self.heard[client]
        self.versions[client], self.heard[client] = self.version, self.round
        return Answer(examples, metrics)

    def close(self) -> None:
        """End the round: the model moves by the mean of the updates, and the view after it. Without answers nothing
        moves; nor where the mean has numbers too large to be kept or sent, which is `Refused`: clients then have back
        what they had left out before.
        """
        mean = self._mean
        self._between_rounds()
        if mean is None or not mean.weight:
            return
        try:
            self._move(mean)
        except Refused:
            if self.links.memory != "shift":  # both ends' shifts have moved, by the same
                for client, heard in mean.heard.items():
                    self.heard[client] = heard
            raise

    def _move(self, mean: _Mean) -> None:
        encoder, statistics = self.links.encoder_down, mean.statistics
        with np.errstate(over="ignore", invalid="ignore"):
            x = self.x + mean.update
            if mean.away:
                x = self.view + np.float32(1 - mean.away) * (self.x - self.view) + mean.update
            difference, view, message, version = x - self.view, x, None, self.version + 1
            try:
                if encoder != _PLAIN:
                    key = _down_key(self.seed, version)
                    message = encoder.encode(difference, key)
                    view = self.view + encoder.decode(message, key)
            except ValueError as error:
                raise Refused(f"the mean of the updates cannot be sent: {error}") from None
        if not all(np.isfinite(vector).all() for vector in (x, view, statistics)):
            raise Refused("the mean of the updates is not finite")
        self.x, self.statistics = x, statistics
        if difference.any():
            self._advance(version, view, message)

    def _advance(self, version, view, message):
        """To a version of the view, which a message leads to, or None where it is sent as it is."""
        self.version, self.view = version, view
        if message is not None:
            self.log[version] = message
        total = 0
        for version in sorted(self.log, reverse=True):  # older ones would never be shorter than the view itself
            total += self.log[version].bits
            if total > 8 * self.view.nbytes:
                del self.log[version]

    def state_dict(self) -> dict:
        """All that a later round depends on, in plain Python and NumPy."""
        log = {version: (message.payload, message.bits, message.size) for version, message in self.log.items()}
        names = ("config", "round", "version", "x", "view", "statistics", "versions", "heard", "shifts")
        return {name: _listed(getattr(self, name)) for name in names} | {"log": log}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there. Raises ValueError for a state of another configuration, or of other clients."""
        complete(state, self.state_dict(), "a server's links")
        if state["config"] != self.config or len(state["versions"]) != self.n:
            raise ValueError(
                f"the state is of {len(state['versions'])} clients and {state['config']}; this server has "
                f"{self.n} and {self.config}"
            )
        for name in self.state_dict().keys() - {"config", "log"}:
            setattr(self, name, _listed(state[name]))
        self.log = {version: Message(*fields, _FLOAT) for version, fields in state["log"].items()}
        self._between_rounds()


def _listed(value):
    """A list of its own: vectors in it are replaced, never written to."""
    return list(value) if isinstance(value, list) else value


# A client


class Task(NamedTuple):
    """What a client is to start from in a round: the view and statistics, float32, its own to change."""

    round: int
    x: np.ndarray
    statistics: np.ndarray


class ClientLink:
    """A client's end of its link: it survives from round to round, in memory or as `state_dict`.

    links, x, statistics, seed: as of the server, the very same. index: which client it is. Raises as `ServerLink`.
    """

    def __init__(self, links: Links, x: np.ndarray, statistics: np.ndarray, index: int, seed: int = 0):
        self.links, self.index, self.seed = links, positive_int(index, "index", 0), Key(seed).seed
        self.view, self.statistics = np.array(x, np.float32), np.array(statistics, np.float32)
        self.version, self.round, self.lost = 0, 0, False
        self._asked: int | None = None  # the round of the last packet, accepted or not
        self.memory = np.zeros(0, np.float32)  # what was left out, or the shift; of no size while that is zero
        self.confirmed: int | None = None  # the last round whose answer has come in: memory is what was kept then
        self.pending: tuple[int, np.ndarray] | None = None  # (round, memory after its answer)
        self.config = links.fingerprint(self.view.size, self.statistics.size, self.seed)
        links.check(self.view.size)

    def receive(self, blob: bytes) -> Task:
        """Start a round. Raises `Refused` for a packet that does not lead to the server's view."""
        head, messages = unpack(blob)
        try:
            config, whole = head["config"], bool(head["whole"])
            round, version, crc = (positive_int(head[name], name, 0) for name in ("round", "version", "crc"))
            base, heard = (head[name] if head[name] is None else positive_int(head[name], name, 0) for name in _KNOWN)
        except KeyError as error:
            raise Refused(f"packet without {error}") from None
        except (TypeError, ValueError) as error:
            raise Refused(f"packet: {error}") from None
        self._asked = round
        if config != _digest(self.config):
            mine = f"{_digest(self.config)}: {self.config}"
            raise Refused(f"a packet of another configuration, {config}, than client {self.index} has, {mine}")
        self._follow(round, version, base, whole, heard)
        d, s = self.view.size, self.statistics.size
        if len(messages) != (1 if whole else version - base) + bool(s):
            raise Refused(f"{len(messages)} messages, {(1 if whole else version - base) + bool(s)} are expected")
        statistics = _decoded(_PLAIN, messages[-1], _KEY, s, "statistics") if s else self.statistics
        if whole:
            view = _decoded(_PLAIN, messages[0], _KEY, d, "the model")
        else:
            view = self.view
            for number in range(self.version + 1, version + 1):
                message, key = messages[number - base - 1], _down_key(self.seed, number)
                view = view + _decoded(self.links.encoder_down, message, key, d, "a change of the model")
        if checksum(view) != crc:
            raise self._lose(f"version {version} of the model has another checksum than the server's")
        if self.pending is not None and heard == self.pending[0]:
            self.memory = self.pending[1]
        elif heard is None:  # no answer has come in, as far as the server knows
            self.memory = np.zeros(0, np.float32)
        self.pending, self.confirmed = None, heard
        self.view, self.statistics, self.version, self.round, self.lost = view, statistics, version, round, False
        return Task(round, view.copy(), statistics.copy())

    def _follow(self, round, version, base, whole, heard):
        """`Refused` unless a packet goes on from where this client is."""
        known = base is not None  # otherwise the server begins anew with this client, with the whole view
        if known and round <= self.round:
            raise self._lose(f"a packet of round {round}, after one of round {self.round}")
        if not whole and not (known and base <= self.version <= version):
            raise self._lose(f"changes from version {base} to {version}, here is version {self.version}")
        if self.links.memory == "shift" and heard not in (None, self.confirmed, self.pending and self.pending[0]):
            raise self._lose(f"the server's shift is of round {heard}, here it is of round {self.confirmed}")

    def _lose(self, why) -> Refused:
        self.lost = True
        return Refused(f"client {self.index}: {why}")

    def answer(
        self,
        update: np.ndarray,
        statistics: np.ndarray,
        examples: int,
        metrics: dict | None = None,
        pull: float = 1.0,
    ) -> bytes:
        """The packet with x - view after local training, what statistics are now, the number of examples and whatever
        else is to be known. pull: the share of the view in what training started from (note F). Raises ValueError for
        NaN and other shapes."""
        d, links = self.view.size, self.links
        update, statistics = (np.ascontiguousarray(vector, np.float32) for vector in (update, statistics))
        if update.shape != (d,):
            raise ValueError(f"client {self.index}: an update of shape {update.shape}, the model has {d} numbers")
        if statistics.shape != self.statistics.shape:
            raise ValueError(
                f"client {self.index}: statistics of shape {statistics.shape}, the model has {self.statistics.size}"
            )
        encoder, key = links.encoder_up, _up_key(self.seed, self.round, self.index)
        memory = self.memory if self.memory.size else np.zeros(d, np.float32)
        sent = update if links.memory == "none" else update + memory if links.memory == "error" else update - memory
        message = encoder.encode(sent, key)
        if links.memory == "error":
            memory = encoder.decode_add(message, key, sent, -1.0)
        elif links.memory == "shift":
            memory = memory + np.float32(links.shift_step(d)) * encoder.decode(message, key)
        head = {"config": _digest(self.config), "round": self.round, "client": self.index, "examples": int(examples)}
        messages = [message, _plain(statistics)] if self.statistics.size else [message]
        blob = pack(head | {"metrics": metrics or {}} | ({} if pull == 1 else {"pull": pull}), messages)
        self.pending = self.round, memory if links.memory != "none" else self.memory
        return blob

    def failure(self, error: Exception) -> bytes:
        """The packet that says why there is no answer."""
        said = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        head = {} if self._asked is None else {"round": self._asked}
        return pack(head | {"client": self.index, "failed": said[:1000], "lost": self.lost}, [])

    def state_dict(self) -> dict:
        """All that a later round depends on, in plain Python and NumPy."""
        names = ("config", "round", "version", "lost", "confirmed", "view", "statistics", "memory", "pending")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there. Raises ValueError for a state of another configuration."""
        complete(state, self.state_dict(), f"the link of client {self.index}")
        if state["config"] != self.config:
            raise ValueError(f"the state is of {state['config']}; client {self.index} has {self.config}")
        for name in self.state_dict().keys() - {"config"}:
            setattr(self, name, state[name])
