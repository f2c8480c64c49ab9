"""FedAvg, and mixtures of global and local models, over links that are compressed and counted.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629. Mixtures: Hanzely, Richtarik, "Federated Learning of a Mixture of Global and
Local Models", 2020, arXiv 2002.05516. Packets and what both ends remember are in `compress.federated.links`.

Design note
-----------
A. A client is data, a link, and a state of its optimizer. In one process they share one module, into which the weights
   of whoever trains are written: what a client keeps is vectors. Those that hold the same view share it. A client of d
   parameters so keeps, besides its data: with momentum d numbers; of its link 2 d, 0 with memory="none"; under a
   mixture d for its own model and 1 for each statistic. The server has n d with memory="shift", and 4 d in a round,
   beside the packets of all, which without compression are n d. 100 clients with momentum and error feedback on the
   11 M parameters of ResNet-18 take 13.6 GB with few bits a coordinate.
B. Whatever goes wrong at a client is a sentence in the round's row, under its index, and the round goes on without it;
   or with on_failure="raise" ends the run. Where all who were heard fail, it is likely to be the program: that ends
   the run too. `drops` is asked before anything is sent, so that one that raises leaves no trace.
C. A mixture is gradient descent on f_i and a proximal step on the penalty, by turns: L2GD of 2002.05516 with as many
   local steps between two averages as a round has, and its step towards the mean taken implicitly, so that any lambda
   will do. A client that moves for a time t = lr * steps / (1 - momentum) in a round steps lambda t / (1 + lambda t) of
   its way to the mean before the next one: all of it for inf, which is FedAvg, none for 0, which is local training.
   Where gradients vanish, lambda (w_i - mean w) = -grad f_i(w_i), as at the minimum; with shards of other sizes those
   with more steps count for more in that mean, as in FedAvg.
   The mean is over those who were heard in a round: the model of a client that drops out, or is not sampled, is not in
   v until the client is heard again. What a compressed downlink has yet to bring into v counts by the share of v from
   which clients start (`links`, note F). The updates w_i - v stay large while the w_i differ: shifts learn them, and
   error feedback, for which no update is ever small, stalls.
"""

from __future__ import annotations

import copy
import math
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch

from ..comm import Communicator, Ledger, Local
from ..compressor import Identity, Message, positive_int
from ..key import Key
from .links import NO_ANSWER, ClientLink, Links, Refused, ServerLink, complete
from .training import Layout, LocalTraining, tensors, text_of

_TRAINING, _CHOICE = 0x7472, 0x6368  # sub-streams of a round's key


class Round(NamedTuple):
    """One round. Bits are of all clients together, packets in full, headers and checksums too.

    loss: the mean of the clients', weighted as their updates; NaN without any. clients: who is in the mean. left_out:
    why the others that took part are not, by client. metrics: what `evaluate` returned, {} in rounds without.

    >>> print(Round(3, 0.25, 8_000, 16_000, [0, 1], {2: "no answer"}, 0.5, {"accuracy": 0.9}))
    round 3: loss 0.25, up 1 kB, down 2 kB, 2 clients, 0.5 s, accuracy 0.9; client 2: no answer
    """

    round: int
    loss: float
    bits_up: int
    bits_down: int
    clients: list[int]
    left_out: dict[int, str]
    seconds: float
    metrics: dict

    def __str__(self):
        up, down = (f"{bits / 8000:.4g} kB" for bits in (self.bits_up, self.bits_down))
        said = [f"loss {self.loss:.4g}", f"up {up}", f"down {down}", f"{len(self.clients)} clients"]
        said.append(f"{self.seconds:.1f} s")
        for name, value in self.metrics.items():
            said.append(f"{name} {value:.4g}" if _is_number(value) else f"{name} {value}")
        return f"round {self.round}: " + "; ".join([", ".join(said), *self.failures()])

    def failures(self) -> list[str]:
        """What went wrong, a sentence for each client that was left out."""
        return [f"client {i}: {why}" for i, why in self.left_out.items()]


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Client:
    """One client: its examples, its link and its optimizer's state.

    counts: buffers of the model that are its own. own: (x, statistics) after its last training, under a mixture.
    """

    def __init__(self, link: ClientLink, images, labels, counts: list):
        self.link, self.images, self.labels = link, images, labels
        self.optimizer: dict = {}
        self.counts = counts
        self.own: tuple[np.ndarray, np.ndarray] | None = None

    def fit(
        self, blob: bytes, module, layout: Layout, training: LocalTraining, key: Key, mixture: float | None
    ) -> bytes:
        """A packet in, local training, a packet out."""
        task = self.link.receive(blob)
        share = self.share(training, mixture, module)
        layout.write(module, *self.pulled((task.x, task.statistics), share))
        layout.write_counts(module, self.counts)
        optimizer = dict(self.optimizer)
        metrics = training(module, self.images, self.labels, optimizer, key)
        own = layout.read(module)
        answer = self.link.answer(own[0] - task.x, own[1], len(self.labels), metrics, share)
        self.optimizer, self.counts = optimizer, layout.counts(module)  # only now that nothing has gone wrong
        if mixture is not None:
            self.own = own
        return answer

    def share(self, training: LocalTraining, mixture: float | None, module) -> float:
        """Of the mean in what it starts from: all where it has no model of its own (note C)."""
        if mixture is None or self.own is None:
            return 1.0
        begun = max(self.optimizer.get("epochs", 0) - training.epochs, 0)  # of the training it had
        time = mixture * training.time(len(self.labels), begun, module)
        return 1.0 if time == math.inf else time / (1 + time)

    def pulled(self, mean, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Its own model and statistics, so far on their way to the mean."""
        if self.own is None:
            return mean
        own, mean = (map(torch.from_numpy, pair) for pair in (self.own, mean))
        return tuple(torch.lerp(w, v, share).numpy() for w, v in zip(own, mean, strict=True))  # exact at both ends

    def state_dict(self) -> dict:
        """All that a later round depends on."""
        return {
            "link": self.link.state_dict(),
            "optimizer": dict(self.optimizer),
            "counts": list(self.counts),
            "own": self.own,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from there. Raises ValueError for a state of another configuration."""
        self.link.load_state_dict(state["link"])
        self.optimizer, self.counts, self.own = dict(state["optimizer"]), list(state["counts"]), state["own"]


class FedAvg:
    """Federated averaging: clients train the model on their own examples, the server averages what they have learned.

        client i:  w_i = training(v),  sends w_i - v;   server:  w <- w + mean_i (w_i - v),  v <- v + C(w - v)

    model: a torch.nn.Module, what all clients start from; it is not changed, and training happens where it lives.
    shards: (images, labels) of each client, (m, c, h, w) and (m,), of which those hosted here are looked at.
    training: a LocalTraining. links: what compresses both ways, and what is remembered.
    comm: a communicator of a worker for each client, Local unless given; on MPI each rank trains the clients it hosts.
    weights: of clients in the mean, "examples" or "uniform". sample: how many clients take part in a round, drawn anew
    for each; None: all. mixture: lambda of

        min over w_1 .. w_n of (1/n) sum_i f_i(w_i) + (lambda / 2n) sum_i ||w_i - mean w||^2

    (shares of examples instead of 1/n where `weights` says so), with models w_i that clients keep, and v their mean:
    inf is FedAvg, 0 is local training (note C). v is the mean of those heard in the last round: with `sample`, `drops`
    or failures not that of all. Compressed updates w_i - v do not vanish there: they need memory="shift" for lambda
    below inf, and memory="error", with which they stall, is refused.
    on_failure: "leave out" a client that fails, or "raise" RuntimeError at the end of the round. drops: a function
    (round, i) -> whether client i, which was sent the model, drops out of that round; until an answer of it comes in,
    what it has missed is sent again. seed: of everything random.

    Statistics of BatchNorm are averaged, uncompressed (`training.Layout` says what counts as one). `model` is the
    global model as clients have it (v) once they are sent the next packet, `server_model` that of the server (w),
    `personal(i)` client i's own under a mixture: each a new copy whenever it is asked for. comm.ledger has the bits of
    all rounds.

    Raises TypeError or ValueError for other parameters, and ValueError for a shard that is empty, is no pair or has
    images of integers, with its index.

    >>> import compress
    >>> from compress.federated import FedAvg, Links, LocalTraining
    >>> A, b = compress.data.load("digits")
    >>> images = (A / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    >>> shards = [(images[rows], b[rows]) for rows in compress.data.split_dirichlet(b, 4, concentration=0.5)]
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> links = Links(up=compress.Kashin(3), down=compress.Kashin(3))
    >>> fed = FedAvg(model, shards, LocalTraining(lr=0.5, epochs=2), links)
    >>> rows = fed.run(3)
    >>> bool(rows[-1].loss < rows[0].loss), rows[-1].left_out
    (True, {})
    """

    def __init__(
        self,
        model,
        shards: Sequence,
        training: LocalTraining,
        links: Links = Links(),  # noqa: B008 (it is frozen)
        comm: Communicator | None = None,
        weights: str = "examples",
        sample: int | None = None,
        mixture: float | None = None,
        on_failure: str = "leave out",
        drops: Callable | None = None,
        seed: int = 0,
    ):
        n = len(shards)
        if not n:
            raise ValueError("FedAvg: there are no shards, and so no clients")
        self.comm = Local(n) if comm is None else comm
        for name, value, kind in (
            ("model", model, torch.nn.Module),
            ("training", training, LocalTraining),
            ("links", links, Links),
            ("comm", self.comm, Communicator),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"FedAvg: {name} must be a {kind.__name__}, got {value!r}")
        if drops is not None and not callable(drops):
            raise TypeError(f"FedAvg: drops must be a function (round, i) -> bool, got {drops!r}")
        if self.comm.n != n:
            raise ValueError(f"{n} shards, and a communicator of {self.comm.n} workers")
        for name, value, known in (
            ("weights", weights, ("examples", "uniform")),
            ("on_failure", on_failure, ("leave out", "raise")),
        ):
            if value not in known:
                raise ValueError(f"FedAvg: {name} must be one of {', '.join(known)}, got {value!r}")
        if mixture is not None:
            if isinstance(mixture, bool) or not isinstance(mixture, numbers.Real):
                raise TypeError(f"FedAvg: mixture must be a number or None, got {mixture!r}")
            if not 0 <= mixture <= math.inf:
                raise ValueError(f"FedAvg: mixture must be at least 0, got {mixture}")
            if mixture < math.inf and links.memory == "error" and links.up != Identity():
                raise ValueError(f'FedAvg: with mixture {mixture} compressed updates stall unless memory="shift"')
            mixture = float(mixture)
        self.training, self.links, self.weights, self.mixture = training, links, weights, mixture
        self.sample = n if sample is None else positive_int(sample, "sample", most=n)
        self.on_failure, self.drops, self.seed = on_failure, drops, Key(seed).seed  # of a generator: drawn once
        self.module, self.layout, self.rounds = copy.deepcopy(model), Layout(model), []
        x, statistics = self._mean = self.layout.read(model)  # (v, statistics), as last seen from outside
        self.server = ServerLink(links, x, statistics, n, self.seed) if self.comm.process == 0 else None
        self._counts = self.layout.counts(model)
        self.clients, self._views = {}, WeakValueDictionary()  # views by version
        for i in self.comm.workers:
            try:
                images, labels = tensors(*_pair(shards[i]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"shard {i}: {error}") from None
            if not len(labels):
                raise ValueError(f"shard {i} is empty: every client needs an example")
            link = ClientLink(links, x, statistics, i, self.seed)
            self.clients[i] = Client(self._shared(link), images, labels, self.layout.counts(model))

    def run(self, rounds: int, evaluate: Callable | None = None, every: int = 1) -> list[Round]:
        """So many more rounds; their rows, also in `rounds`. `print(row)` says one in a line.

        evaluate: a function of the global model, in eval mode, after the round, that returns a dict; asked every so
        many rounds, and after the last, on process 0. The row is in `rounds` already, also where it raises.

        Raises RuntimeError, with what went wrong at each, after a round in which none of the clients that were heard is
        in the mean, also with on_failure="leave out": the model stays, and more rounds can follow. A round that is
        interrupted, as by Ctrl-C, has no row, and its number is not taken again: it is as if all answers had been lost,
        and the ledger has the bits that were sent.
        """
        every = positive_int(every, "every")
        try:
            for left in reversed(range(positive_int(rounds, "rounds"))):
                row = self._round()
                self.rounds.append(row)
                if evaluate is not None and self.comm.process == 0 and (left == 0 or row.round % every == 0):
                    self.rounds[-1] = row._replace(metrics=dict(evaluate(self.model)))
                nobody = not row.clients and any(why != NO_ANSWER for why in row.left_out.values())
                if nobody or (row.left_out and self.on_failure == "raise"):
                    raise RuntimeError(f"round {row.round}: " + "; ".join(row.failures()))
        finally:
            if self.mixture is not None:  # personal models are looked at from outside, and nothing is counted
                self._mean = self.comm.agree(self.server and (self.server.view, self.server.statistics))
        return self.rounds[-rounds:]

    def _round(self) -> Round:
        begin, server, comm = perf_counter(), self.server, self.comm
        bits_up, bits_down, down, left_out = comm.ledger.bits_up, comm.ledger.bits_down, None, {}
        number = comm.agree(server.round + 1 if server else None)
        key = Key(self.seed).at(number).fold(_TRAINING)
        order = np.random.Generator(np.random.Philox(key=key.fold(_CHOICE).word))
        chosen = sorted(order.choice(comm.n, self.sample, replace=False).tolist())
        dropped = {i for i in chosen if i in comm.workers and self.drops is not None and self.drops(number, i)}
        if server:
            server.open(self.weights)
            down = [_message(server.packet(i) if i in chosen else b"") for i in range(comm.n)]
        up = []
        for i, message in zip(comm.workers, comm.scatter(down), strict=True):
            silent = not message.size or i in dropped
            up.append(_message(b"" if silent else self._fit(i, message.payload.tobytes(), key.worker(i))))
        replies, answers = comm.gather(up), {}
        if server:
            for i in chosen:
                try:
                    answers[i] = server.take(i, replies[i].payload.tobytes())
                except Refused as error:
                    left_out[i] = str(error)
            try:
                server.close()
            except Refused as error:
                left_out, answers = left_out | dict.fromkeys(answers, str(error)), {}
        row = None
        if server:
            row = Round(
                number,
                self._loss(answers.values()),
                comm.ledger.bits_up - bits_up,
                comm.ledger.bits_down - bits_down,
                list(answers),
                dict(sorted(left_out.items())),
                perf_counter() - begin,
                {},
            )
        return comm.agree(row)

    def _loss(self, answers) -> float:
        """The mean of what clients say their losses are."""
        losses = [answer.metrics.get("loss") for answer in answers]
        most = sys.float_info.max  # integers may be larger
        losses = [float(loss) if _is_number(loss) and abs(loss) <= most else math.nan for loss in losses]
        shares = [answer.examples if self.weights == "examples" else 1 for answer in answers]
        return float(np.average(losses, weights=shares)) if losses else math.nan

    def _fit(self, i, blob, key) -> bytes:
        """The answer of client i, or what went wrong there."""
        client = self.clients[i]
        try:
            return client.fit(blob, self.module, self.layout, self.training, key, self.mixture)
        except Exception as error:
            return client.link.failure(error)
        finally:
            self._shared(client.link)

    def _shared(self, link) -> ClientLink:
        """Links that are at the same version hold the same memory: the bits are the same, checksums said so."""
        link.view = self._views.setdefault(link.version, link.view)
        return link

    def _with(self, x, statistics, counts=None):
        model = copy.deepcopy(self.module)
        self.layout.write(model, x, statistics)
        self.layout.write_counts(model, self._counts if counts is None else counts)
        return model.eval()

    @property
    def model(self):
        """The global model as clients have it, v, in eval mode; on process 0."""
        return self._with(self.server.view, self.server.statistics)

    @property
    def server_model(self):
        """The server's, w, of which v is what the downlink has got across; on process 0."""
        return self._with(self.server.x, self.server.statistics)

    def personal(self, i: int):
        """Client i's own model w_i under a mixture, a step from its last training to the mean of all, as which the next
        round would begin; in eval mode, where the client is hosted, with the weights and statistics of the last run.

        Raises ValueError where there is none.
        """
        if i not in self.clients:
            raise ValueError(f"client {i} is not hosted here: clients are {self.comm.workers}")
        client = self.clients[i]
        if client.own is None:
            raise ValueError(f"client {i} has no model of its own: it has not taken part, or there is no mixture")
        return self._with(
            *client.pulled(self._mean, client.share(self.training, self.mixture, self.module)), client.counts
        )

    def state_dict(self) -> dict:
        """Everything that a later round depends on, on this process: numbers, strings and tensors, for torch.save, and
        torch.load with weights_only=True. Vectors are not copied.

        What a generator of the caller's has drawn, in `augment` or `drops`, is the caller's to save.
        """
        state = {
            "server": self.server and self.server.state_dict(),
            "clients": {i: client.state_dict() for i, client in self.clients.items()},
            "rounds": [tuple(row) for row in self.rounds],
            "mean": self._mean,
            "ledger": asdict(self.comm.ledger),
            "settings": self._settings(),
        }
        return _mapped(state, np.ndarray, torch.from_numpy)

    def _settings(self) -> dict[str, str]:
        """What must be the same for the same bits, but for what links check."""
        names = "training", "mixture", "weights", "sample"
        return {name: text_of(getattr(self, name)) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there, to the same bits, with the ledger as it was. Raises ValueError, and changes nothing, for
        other clients, another training, mixture, weights or sample, another configuration of links, and for what is no
        state."""
        complete(state, self.state_dict(), "a FedAvg")
        if set(state["clients"]) != set(self.clients):
            raise ValueError(f"the state is of clients {sorted(state['clients'])}, here are {sorted(self.clients)}")
        for name, mine in self._settings().items():
            if state["settings"][name] != mine:
                raise ValueError(f"the state is of {name} {state['settings'][name]}, here it is {mine}")
        numpy = _mapped(state, torch.Tensor, lambda tensor: tensor.numpy())
        if self.server:
            self.server.load_state_dict(numpy["server"])
        self._views.clear()
        for i, client in self.clients.items():
            torchs = {name: state["clients"][i][name] for name in ("optimizer", "counts")}
            client.load_state_dict(numpy["clients"][i] | torchs)
            self._shared(client.link)
        self._mean, self.comm.ledger = numpy["mean"], Ledger(**state["ledger"])
        self.rounds = [Round(*row) for row in state["rounds"]]


def _pair(shard):
    """(images, labels), or TypeError."""
    if not (isinstance(shard, (tuple, list)) and len(shard) == 2):
        many = f" of {len(shard)}" if isinstance(shard, (tuple, list)) else ""
        raise TypeError(f"it must be a pair (images, labels), got a {type(shard).__name__}{many}")
    return shard


def _mapped(value, kind, function, made=None):
    """A structure with a function of everything in it that is of a kind, once for each object."""
    made = {} if made is None else made
    if isinstance(value, kind):
        if id(value) not in made:
            made[id(value)] = function(value)
        return made[id(value)]
    if isinstance(value, dict):
        return {name: _mapped(each, kind, function, made) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(each, kind, function, made) for each in value)
    return value.item() if isinstance(value, np.generic) else value


def _message(blob: bytes) -> Message:
    """Bytes as what communicators carry."""
    return Message(np.frombuffer(blob, np.uint8), 8 * len(blob), len(blob), np.dtype(np.float32))
