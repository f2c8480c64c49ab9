"""FedAvg, and mixtures of global and local models, over links that are compressed and counted.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629. Mixtures: Hanzely, Richtarik, "Federated Learning of a Mixture of Global and
Local Models", 2020, arXiv 2002.05516. Packets and what both ends remember are in `compress.federated.links`.

Design note
-----------
A. A client is data, a link, and a state of its optimizer. In one process they share one module, into which the weights
   of whoever trains are written: what a client keeps is vectors.
B. Whatever goes wrong at a client is a sentence in the round's row, under its index, and the round goes on without it;
   or with on_failure="raise" ends the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from ..comm import Communicator, Local
from ..compressor import Message, positive_int
from ..key import Key
from .links import ClientLink, Links, Refused, ServerLink
from .training import Layout, LocalTraining, tensors

_TRAINING, _CHOICE = 0x7472, 0x6368  # sub-streams of a round's key


class Round(NamedTuple):
    """One round. Bits are of all clients together, packets in full, headers and checksums too.

    loss: the mean of the clients', weighted as their updates. clients: who is in the mean. left_out: why the others
    that took part are not, by client. metrics: what `evaluate` returned, {} in rounds without.
    """

    round: int
    loss: float
    bits_up: int
    bits_down: int
    clients: list[int]
    left_out: dict[int, str]
    seconds: float
    metrics: dict


class Client:
    """One client: its examples, its link and its optimizer's state; own: its weights, where it keeps some."""

    def __init__(self, link: ClientLink, images, labels):
        self.link, self.images, self.labels = link, images, labels
        self.optimizer: dict = {}
        self.own: np.ndarray | None = None

    def fit(
        self, blob: bytes, module, layout: Layout, training: LocalTraining, key: Key, penalty: float | None
    ) -> bytes:
        """A packet in, local training, a packet out."""
        task = self.link.receive(blob)
        start = task.x if self.own is None or penalty is None else self.own
        layout.write(module, start, task.statistics)
        mixed = {} if penalty is None else {"centre": torch.from_numpy(task.x), "penalty": penalty}
        optimizer = copy.deepcopy(self.optimizer)
        metrics = training(module, self.images, self.labels, optimizer, key, **mixed)
        x, statistics = layout.read(module)
        answer = self.link.answer(x - task.x, statistics, len(self.labels), metrics)
        self.optimizer = optimizer  # only now that nothing has gone wrong
        if penalty is not None:
            self.own = x
        return answer

    def state_dict(self) -> dict:
        return {"link": self.link.state_dict(), "optimizer": copy.deepcopy(self.optimizer), "own": self.own}

    def load_state_dict(self, state: dict) -> None:
        self.link.load_state_dict(state["link"])
        self.optimizer, self.own = copy.deepcopy(state["optimizer"]), state["own"]


class FedAvg:
    """Federated averaging: clients train the model on their own examples, the server averages what they have learned.

        client i:  w_i = training(v),  sends w_i - v;   server:  w <- w + mean_i (w_i - v),  v <- v + C(w - v)

    model: a torch.nn.Module, what all clients start from; it is not changed. shards: (images, labels) of each client,
    (m, c, h, w) and (m,). training: a LocalTraining. links: what compresses both ways, and what is remembered.
    comm: a communicator of a worker for each client, Local unless given; on MPI each rank trains the clients it hosts.
    weights: of clients in the mean, "examples" or "uniform". sample: how many clients take part in a round, drawn anew
    for each; None: all. mixture: lambda of

        min over w_1 .. w_n of (1/n) sum_i f_i(w_i) + (lambda / 2n) sum_i ||w_i - mean w||^2,

    where clients keep their own w_i, and v is their mean: inf is FedAvg, 0 is local training.
    on_failure: "leave out" a client that fails, or "raise" RuntimeError at the end of the round. drops: a function
    (round, i) -> whether client i, which was sent the model, drops out of that round. seed: of everything random.

    Statistics of BatchNorm are averaged, uncompressed. `model` is the global model as clients have it (v),
    `server_model` that of the server (w), `personal(i)` client i's own under a mixture.

    Raises TypeError or ValueError for other parameters, and for an empty shard, with its index.

    >>> import compress
    >>> from compress.federated import FedAvg, Links, LocalTraining
    >>> A, b = compress.data.load("digits")
    >>> images = (A / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    >>> shards = [(images[rows], b[rows]) for rows in compress.data.split(len(b), 4)]
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
        self.comm = Local(n) if comm is None else comm
        if self.comm.n != n:
            raise ValueError(f"{n} shards, and a communicator of {self.comm.n} workers")
        for name, value, known in (
            ("weights", weights, ("examples", "uniform")),
            ("on_failure", on_failure, ("leave out", "raise")),
        ):
            if value not in known:
                raise ValueError(f"FedAvg: {name} must be one of {', '.join(known)}, got {value!r}")
        if mixture is not None and not mixture >= 0:
            raise ValueError(f"FedAvg: mixture must be at least 0, got {mixture}")
        self.training, self.links, self.weights, self.mixture = training, links, weights, mixture
        self.sample = n if sample is None else positive_int(sample, "sample", most=n)
        self.on_failure, self.drops, self.seed = on_failure, drops, seed
        self.module, self.layout, self.rounds = copy.deepcopy(model), Layout(model), []
        x, statistics = self.layout.read(model)
        self.server = ServerLink(links, x, statistics, n, seed) if self.comm.process == 0 else None
        self.clients = {}
        for i in self.comm.workers:
            try:
                images, labels = tensors(*shards[i])
            except (TypeError, ValueError) as error:
                raise ValueError(f"shard {i}: {error}") from None
            if not len(labels):
                raise ValueError(f"shard {i} is empty: every client needs an example")
            self.clients[i] = Client(ClientLink(links, x, statistics, i, seed), images, labels)

    def run(self, rounds: int, evaluate: Callable | None = None, every: int = 1) -> list[Round]:
        """So many more rounds; their rows, also in `rounds`.

        evaluate: a function of the global model, in eval mode, that returns a dict; asked every so many rounds, and
        after the last, on process 0.
        """
        for left in reversed(range(positive_int(rounds, "rounds"))):
            row = self._round()
            if evaluate is not None and self.comm.process == 0 and (left == 0 or row.round % every == 0):
                row = row._replace(metrics=dict(evaluate(self.model)))
            self.rounds.append(row)
        return self.rounds[-rounds:]

    def _round(self) -> Round:
        begin, server, comm = perf_counter(), self.server, self.comm
        bits_up, bits_down, down, left_out = comm.ledger.bits_up, comm.ledger.bits_down, None, {}
        number = comm.agree(server.round + 1 if server else None)
        key = Key(self.seed).at(number).fold(_TRAINING)
        order = np.random.Generator(np.random.Philox(key=key.fold(_CHOICE).word))
        chosen = sorted(order.choice(comm.n, self.sample, replace=False).tolist())
        if server:
            server.open()
            down = [_message(server.packet(i) if i in chosen else b"") for i in range(comm.n)]
        up = []
        for i, message in zip(comm.workers, comm.scatter(down), strict=True):
            dropped = not message.size or (self.drops is not None and self.drops(number, i))
            up.append(_message(b"" if dropped else self._fit(i, message.payload.tobytes(), key.worker(i))))
        replies, answers = comm.gather(up), {}
        if server:
            for i in chosen:
                try:
                    answers[i] = server.take(i, replies[i].payload.tobytes())
                except Refused as error:
                    left_out[i] = str(error)
            server.close(answers, self.weights)
        row = None
        if server:
            examples = [answer.examples if self.weights == "examples" else 1 for answer in answers.values()]
            losses = [answer.metrics.get("loss", math.nan) for answer in answers.values()]
            row = Round(
                number,
                float(np.average(losses, weights=examples)) if answers else math.nan,
                comm.ledger.bits_up - bits_up,
                comm.ledger.bits_down - bits_down,
                list(answers),
                left_out,
                perf_counter() - begin,
                {},
            )
        row = comm.agree(row)
        if row.left_out and self.on_failure == "raise":
            raise RuntimeError(f"round {number}: " + "; ".join(f"client {i}: {why}" for i, why in row.left_out.items()))
        return row

    def _fit(self, i, blob, key) -> bytes:
        """The answer of client i, or what went wrong there."""
        client = self.clients[i]
        try:
            return client.fit(blob, self.module, self.layout, self.training, key, self.mixture)
        except Exception as error:
            return client.link.failure(error)

    def _with(self, x, statistics=None):
        model = copy.deepcopy(self.module)
        self.layout.write(model, x, statistics)
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
        """Client i's own model under a mixture, in eval mode, with the statistics of all; where it is hosted."""
        client = self.clients[i]
        if client.own is None:
            raise ValueError(f"client {i} has no model of its own: it has not taken part, or there is no mixture")
        return self._with(client.own, client.link.statistics)

    def state_dict(self) -> dict:
        """Everything that a later round depends on, on this process: for torch.save."""
        return {
            "server": self.server and self.server.state_dict(),
            "clients": {i: client.state_dict() for i, client in self.clients.items()},
            "rounds": [tuple(row) for row in self.rounds],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from there, to the same bits. Raises ValueError for other clients or another configuration."""
        if set(state["clients"]) != set(self.clients):
            raise ValueError(f"the state is of clients {sorted(state['clients'])}, here are {sorted(self.clients)}")
        if self.server:
            self.server.load_state_dict(state["server"])
        for i, client in self.clients.items():
            client.load_state_dict(state["clients"][i])
        self.rounds = [Round(*row) for row in state["rounds"]]


def _message(blob: bytes) -> Message:
    """Bytes as what communicators carry."""
    return Message(np.frombuffer(blob, np.uint8), 8 * len(blob), len(blob), np.dtype(np.float32))
