"""FedAvg, mixtures, local training and models: against loops written here, with whatever goes wrong at clients."""

import copy
import io
import itertools
import math

import numpy as np
import pytest

import compress

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from compress.federated import FedAvg, Links, LocalTraining, Round, accuracy, fine_tune, interpolate  # noqa: E402
from compress.federated.links import pack, unpack  # noqa: E402
from compress.federated.models import Normalize, SmallCNN, resnet18  # noqa: E402
from compress.federated.training import Layout, tensors  # noqa: E402

KASHIN = Links(compress.Kashin(3), compress.Kashin(3), "shift")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(n=3, seed=0, m=40, classes=3, sizes=None):
    """n shards of m images of 1x4x4 that a linear model can tell apart, or of the sizes given."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).standard_normal((classes, 1, 4, 4))
    shards = []
    for size in sizes or [m] * n:
        labels = rng.integers(classes, size=size)
        images = means[labels] + 0.5 * rng.standard_normal((size, 1, 4, 4))
        shards.append((images.astype(np.float32), labels))
    return shards


def net(seed=0, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers if norm else layers[:1] + layers[2:])


def vectors(model):
    """All floats of a model: what is compared."""
    return np.concatenate([t.detach().numpy().ravel() for t in model.state_dict().values() if t.is_floating_point()])


def key_of(fed, round, i):
    return compress.Key(fed.seed).at(round).fold(0x7472).worker(i)


# Against loops written here


@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_without_compression_it_is_federated_averaging(weights):
    """McMahan et al.'s loop in plain torch: momentum kept, milestones over all rounds, BatchNorm averaged."""
    shards, model = data(sizes=[30, 17, 50]), net()
    training = LocalTraining(lr=0.1, epochs=2, batch=16, momentum=0.9, weight_decay=1e-3, milestones=3, factor=0.3)
    fed = FedAvg(model, shards, training, weights=weights)
    fed.run(3)
    counts = [len(labels) if weights == "examples" else 1 for _, labels in shards]
    share = [count / sum(counts) for count in counts]
    w = {name: t.clone() for name, t in model.state_dict().items()}
    buffers, epochs = [None] * 3, [0] * 3
    for round in range(1, 4):
        ends, losses = [], []
        for i, (images, labels) in enumerate(shards):
            local = copy.deepcopy(model)
            local.load_state_dict(w)
            local.train()
            order = np.random.Generator(np.random.Philox(key=key_of(fed, round, i).fold(0x62).word))
            for _ in range(2):
                lr, rows, loss_sum = 0.1 * 0.3 ** (epochs[i] // 3), order.permutation(len(labels)), 0
                starts = [start for start in range(0, len(rows), 16) if start == 0 or len(rows) - start > 1]
                for batch in np.split(rows, starts[1:]):  # 17 are one batch
                    local.zero_grad()
                    loss = functional.cross_entropy(local(torch.tensor(images[batch])), torch.tensor(labels[batch]))
                    loss.backward()
                    loss_sum += loss.item() * len(batch)
                    gradients = [p.grad + 1e-3 * p.detach() for p in local.parameters()]
                    if buffers[i] is None:
                        buffers[i] = gradients
                    else:
                        buffers[i] = [0.9 * v + g for v, g in zip(buffers[i], gradients, strict=True)]
                    with torch.no_grad():
                        for p, v in zip(local.parameters(), buffers[i], strict=True):
                            p -= lr * v
                epochs[i] += 1
            ends.append(local.state_dict())
            losses.append(loss_sum / len(rows))
        for name, t in w.items():
            if t.is_floating_point():
                w[name] = sum(p * end[name] for p, end in zip(share, ends, strict=True))
        assert fed.rounds[round - 1].loss == pytest.approx(np.dot(share, losses), abs=1e-5)
    assert np.abs(vectors(fed.model) - vectors(model)).max() > 0.1
    for name, t in fed.model.state_dict().items():
        if t.is_floating_point():
            torch.testing.assert_close(t, w[name], rtol=0, atol=2e-6)


def test_the_ledger_is_the_sum_of_all_packets(monkeypatch):
    fed = FedAvg(net(), data(), LocalTraining(), KASHIN, drops=lambda r, i: (r, i) == (2, 1))
    up, down = [], []
    packet, take = fed.server.packet, fed.server.take
    monkeypatch.setattr(fed.server, "packet", lambda i: down.append(packet(i)) or down[-1])
    monkeypatch.setattr(fed.server, "take", lambda i, blob: up.append(blob) or take(i, blob))
    rows = fed.run(3)
    assert len(up) == len(down) == 9 and sum(map(bool, up)) == 8
    assert sum(row.bits_up for row in rows) == fed.comm.ledger.bits_up == 8 * sum(map(len, up))
    assert sum(row.bits_down for row in rows) == fed.comm.ledger.bits_down == 8 * sum(map(len, down))
    C, d, s = compress.Kashin(3), fed.layout.d, fed.layout.statistics
    assert d == 4 * 9 + 4 + 8 + 51 and s == 8
    assert [[m.bits for m in unpack(blob).messages] for blob in up if blob] == [[C.bits(d), 32 * s]] * 8
    assert [len(unpack(blob).messages) - 1 for blob in down] == [0, 0, 0, 1, 1, 1, 1, 2, 1]


def test_lambda_infinite_is_federated_averaging_to_the_bit():
    training = LocalTraining(lr=0.1, epochs=2, batch=16, momentum=0.9)
    one, other = FedAvg(net(), data(), training, KASHIN), FedAvg(net(), data(), training, KASHIN, mixture=math.inf)
    rows, same = one.run(4), other.run(4)
    assert [(r.loss, r.bits_up, r.bits_down) for r in rows] == [(r.loss, r.bits_up, r.bits_down) for r in same]
    assert vectors(one.model).tobytes() == vectors(other.model).tobytes()
    assert vectors(other.personal(1)).tobytes() == vectors(other.model).tobytes()


def test_lambda_zero_is_local_training_to_the_bit():
    shards, training = data(), LocalTraining(lr=0.1, epochs=2, batch=16, momentum=0.9, milestones=3)
    fed = FedAvg(net(), shards, training, KASHIN, mixture=0)
    fed.run(4)
    for i, shard in enumerate(shards):
        alone, state = net(), {}
        for round in range(1, 5):
            training(alone, *tensors(*shard), state, key_of(fed, round, i))
        assert vectors(fed.personal(i)).tobytes() == vectors(alone).tobytes()
        assert (
            fed.personal(i).state_dict()["1.num_batches_tracked"] == alone.state_dict()["1.num_batches_tracked"] == 24
        )


def test_a_mixture_goes_to_the_minimum_and_closer_to_the_mean_as_lambda_grows():
    """lambda (w_i - mean w) = -grad f_i(w_i) there, with full batches; weight decay makes f_i strongly convex."""
    torch.manual_seed(0)
    model, shards, distances = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data(sizes=[20, 20, 20]), []
    decay = 0.25
    for lam in (0, 0.1, 1, 10, math.inf):
        fed = FedAvg(model, shards, LocalTraining(lr=0.2, batch=20, weight_decay=decay), mixture=lam)
        fed.run(120)
        own = [vectors(fed.personal(i)).astype(np.float64) for i in range(3)]
        mean = np.mean(own, axis=0)
        distances.append(np.mean([np.linalg.norm(w - mean) for w in own]))
        gradients = []
        for i, (images, labels) in enumerate(shards):
            local = fed.personal(i)
            functional.cross_entropy(local(torch.tensor(images)), torch.tensor(labels)).backward()
            gradients.append(np.concatenate([p.grad.numpy().ravel() for p in local.parameters()]) + decay * own[i])
        if lam < math.inf:
            residual = max(np.abs(g + lam * (w - mean)).max() for g, w in zip(gradients, own, strict=True))
            assert residual < 1e-3, lam
            assert lam < 1 or max(np.abs(g).max() for g in gradients) > 0.01  # there is something to balance
        assert np.abs(np.mean(gradients, axis=0)).max() < 1e-3
    assert all(b < 0.8 * a for a, b in itertools.pairwise(distances)), distances
    assert distances[-1] < 1e-6


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("both", [False, True], ids=["down", "both ways"])
def test_a_compressed_mixture_follows_the_mean(lam, both):
    """v stays near the mean of w_i: what one bit has left out of v is not added where clients do not start from v."""
    A, b = compress.data.load("digits")
    images = (A / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    shards = [(images[rows], b[rows]) for rows in compress.data.split_dirichlet(b, 4, concentration=0.5)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    links = Links(compress.Eden(1), compress.Eden(1), "shift") if both else Links(down=compress.Eden(1))
    fed = FedAvg(model, shards, LocalTraining(lr=0.1, batch=32), links, mixture=lam)
    fed.run(40)
    share = np.array([len(labels) for _, labels in shards]) / len(b)
    mean = sum(p * fed.clients[i].own[0] for i, p in enumerate(share))
    distance = np.mean([np.linalg.norm(client.own[0] - mean) for client in fed.clients.values()])
    assert np.linalg.norm(fed.server.view - mean) < 0.03 * np.linalg.norm(mean)
    assert distance > 0.4  # of another size than what is left out


def test_error_feedback_of_a_mixture_is_refused():
    links = Links(compress.Eden(1), compress.Eden(1))
    for lam in (0, 3.0):
        with pytest.raises(ValueError, match=f'with mixture {lam} compressed updates stall unless memory="shift"'):
            FedAvg(net(), data(), LocalTraining(), links, mixture=lam)
    one, other = (FedAvg(net(), data(), LocalTraining(), links, mixture=lam) for lam in (math.inf, None))
    one.run(3), other.run(3)
    assert vectors(one.model).tobytes() == vectors(other.model).tobytes()
    FedAvg(net(), data(), LocalTraining(), Links(down=compress.Eden(1)), mixture=1).run(1)


def test_the_step_to_the_mean_follows_the_schedule():
    """lambda t / (1 + lambda t) for the time t of the last round, which lr was smaller in."""
    training = LocalTraining(lr=0.1, epochs=2, batch=16, momentum=0.5, milestones=2, factor=0.1)
    fed = FedAvg(net(), data(), training, mixture=3)
    for lr in (0.1, 0.01):
        fed.run(1)
        t = lr * 2 * 3 / 0.5  # two epochs of three batches
        own = fed.clients[1].own[0]
        expected = own + 3 * t / (1 + 3 * t) * (fed.server.view - own)
        np.testing.assert_allclose(fed.layout.read(fed.personal(1))[0], expected, rtol=0, atol=1e-6)
        assert np.abs(fed.server.view - own).max() > 1e-4


def test_a_personal_model_that_is_not_there_is_named():
    fed = FedAvg(net(), data(), LocalTraining(), mixture=1, drops=lambda r, i: i == 2)
    fed.run(1)
    fed.personal(0)
    with pytest.raises(ValueError, match="client 2 has no model of its own"):
        fed.personal(2)
    for i in (9, -1):
        with pytest.raises(ValueError, match=rf"client {i} is not hosted here: clients are range\(0, 3\)"):
            fed.personal(i)
    with pytest.raises(ValueError, match="there is no mixture"):
        FedAvg(net(), data(), LocalTraining()).personal(0)


# With compressed links


def test_memory_makes_up_for_one_bit():
    """Clients with digits of their own, one local step a round: their gradients do not vanish at the minimum."""
    A, b = compress.data.load("digits")
    images = (A[:300] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    shards = [(images[rows], b[rows]) for rows in compress.data.split_sorted(b[:300], 4)]
    torch.manual_seed(0)
    model, training = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), LocalTraining(lr=0.3, batch=300)

    def loss(up, memory):
        fed = FedAvg(model, shards, training, Links(up, memory=memory))
        fed.run(60)
        with torch.no_grad():
            return functional.cross_entropy(fed.model(torch.tensor(images)), torch.tensor(b[:300]).long()).item()

    exact, none = loss(compress.Identity(), "none"), loss(compress.Eden(1), "none")
    for memory in ("error", "shift"):
        kept = loss(compress.Eden(1), memory)
        assert kept < 0.9 * none, (memory, kept, none)
        assert kept == pytest.approx(exact, rel=0.05), (memory, kept, exact)


@pytest.mark.parametrize(
    "links",
    [
        Links(compress.Eden(1), compress.Eden(1)),
        Links(compress.Trellis(2), compress.Trellis(2), "shift"),
        KASHIN,
    ],
    ids=str,
)
def test_one_or_two_bits_reach_the_accuracy_of_float32(links):
    A, b = compress.data.load("digits")
    images = (A / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(b))
    train, test = order[:1400], order[1400:]
    shards = [(images[rows], b[rows]) for rows in np.array_split(train, 5)]
    torch.manual_seed(0)
    model, training = SmallCNN(1, 10, width=16, norm="group"), LocalTraining(lr=0.1, batch=32, momentum=0.9)
    share = {}
    for name, each in (("float32", Links()), ("compressed", links)):
        fed = FedAvg(model, shards, training, each)
        fed.run(6)
        ledger = fed.comm.ledger
        share[name] = accuracy(fed.model, images[test], b[test]), ledger.bits_up, ledger.bits_down
    p, *bits = share["float32"]
    assert p > 0.9
    assert share["compressed"][0] > p - 3 * math.sqrt(2 * p * (1 - p) / len(test))
    for mine, full in zip(share["compressed"][1:], bits, strict=True):
        assert mine < full / 14


# Whatever goes wrong at a client


def failing(i, error):
    """Training that fails at the client with i + 10 examples."""

    class Failing(LocalTraining):
        def __call__(self, model, images, labels, *rest, **named):
            if len(labels) == 10 + i:
                if isinstance(error, Exception):
                    raise error
                error(model)
            return super().__call__(model, images, labels, *rest, **named)

    return Failing()


def with_nan(images):
    images = images.copy()
    images[0, 0, 0, 0] = np.nan
    return images


def shards_of_10(n=3):
    return data(sizes=[10 + i for i in range(n)])


def test_whatever_fails_is_named_and_the_round_goes_on():
    shards = shards_of_10(7)
    shards[1] = with_nan(shards[1][0]), shards[1][1]
    shards[2] = shards[2][0], shards[2][1] + 3
    shards[3] = shards[3][0][:, :, :2], shards[3][1]
    fed = FedAvg(net(), shards, failing(4, OSError("disk is full")), KASHIN, drops=lambda r, i: i == 5)
    row = fed.run(2)[-1]
    assert row.clients == [0, 6] and list(row.left_out) == [1, 2, 3, 4, 5]
    assert row.left_out[1] == "ValueError: the loss is nan in epoch 1: 1 of 11 images have NaN or Inf"
    assert row.left_out[2] == "ValueError: labels are from 3 to 5, the model has classes from 0 to 2"
    assert "RuntimeError" in row.left_out[3]
    assert row.left_out[4] == "OSError: disk is full" and row.left_out[5] == "no answer"
    assert math.isfinite(row.loss) and np.isfinite(vectors(fed.model)).all()
    assert "; client 4: OSError: disk is full" in str(row)
    # it is as if the others had not been there
    good = FedAvg(net(), shards, LocalTraining(), KASHIN, drops=lambda r, i: 0 < i < 6)
    good.run(2)
    assert vectors(good.model).tobytes() == vectors(fed.model).tobytes()
    # what a client keeps is what it had
    assert (
        fed.clients[1].optimizer == {} and fed.clients[1].link.pending is None and not fed.clients[1].link.memory.size
    )


def test_an_update_of_nan_is_named_and_leaves_the_client_as_it_was():
    class Spoiled(LocalTraining):
        def __call__(self, model, images, labels, state, key):
            metrics = super().__call__(model, images, labels, state, key)
            if len(labels) == 10 and state["epochs"] > 1:
                with torch.no_grad():
                    model[0].weight[0] = math.nan
            return metrics

    fed = FedAvg(net(), shards_of_10(), Spoiled(momentum=0.9), KASHIN, mixture=1)
    fed.run(1)
    client = fed.clients[0]
    kept = copy.deepcopy((client.optimizer, client.counts, client.own))
    (row,) = fed.run(1)
    assert row.left_out == {0: "ValueError: x has 9 NaN or Inf among 99 elements, the first at index 0: nan"}
    assert client.optimizer["epochs"] == kept[0]["epochs"] == 1
    assert torch.equal(client.optimizer["momentum"][0], kept[0]["momentum"][0])
    assert client.counts == kept[1] and np.array_equal(client.own[0], kept[2][0])


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda blob: blob[:-1], "checksum does not match"),
        (lambda blob: b"hello" + blob, "no packet"),
        (lambda blob: pack(unpack(blob).head | {"config": "0"}, unpack(blob).messages), "another configuration"),
        (lambda blob: pack(unpack(blob).head | {"round": 1}, unpack(blob).messages), "to round 1; this is client 1"),
        (lambda blob: pack(unpack(blob).head, unpack(blob).messages[:1]), "1 messages, 2 are expected"),
        (lambda blob: pack(unpack(blob).head, [unpack(blob).messages[1]] * 2), "an update of 8 numbers, 99 are"),
        (lambda blob: pack(unpack(blob).head, [nan_message(99), unpack(blob).messages[1]]), "99 numbers that are not"),
        (lambda blob: pack(unpack(blob).head | {"examples": 0}, unpack(blob).messages), "examples must be"),
    ],
)
def test_a_hostile_answer_is_named_and_the_round_goes_on(monkeypatch, spoil, said):
    fed = FedAvg(net(), data(), LocalTraining(), Links())
    fed.run(1)
    take = fed.server.take
    monkeypatch.setattr(fed.server, "take", lambda i, blob: take(i, spoil(blob) if i == 1 else blob))
    (row,) = fed.run(1)
    assert row.clients == [0, 2] and list(row.left_out) == [1] and said in row.left_out[1]
    monkeypatch.undo()
    assert fed.run(1)[0].clients == [0, 1, 2]


def nan_message(d):
    return compress.Message(np.full(d, np.nan, np.float32).view(np.uint8), 32 * d, d, np.dtype(np.float32))


def test_metrics_of_hostile_clients_do_not_end_the_round(monkeypatch):
    fed = FedAvg(net(), data(), LocalTraining())
    take = fed.server.take
    for loss in ("low", None, [1], {}, 10**400):
        spoil = lambda b, loss=loss: pack(unpack(b).head | {"metrics": {"loss": loss}}, unpack(b).messages)  # noqa: E731
        monkeypatch.setattr(fed.server, "take", lambda i, blob, spoil=spoil: take(i, spoil(blob) if i == 1 else blob))
        (row,) = fed.run(1)
        assert math.isnan(row.loss) and len(row.clients) + len(row.left_out) == 3


def test_losses_of_any_kind_of_number_are_averaged():
    class Says(LocalTraining):
        def __call__(self, model, images, labels, *rest):
            super().__call__(model, images, labels, *rest)
            return {"loss": {10: np.float32(0.5), 11: 2, 12: torch.tensor(1.0)}[len(labels)]}

    (row,) = FedAvg(net(), shards_of_10(), Says()).run(1)
    assert row.loss == pytest.approx((10 * 0.5 + 11 * 2 + 12) / 33)


def test_a_client_of_another_configuration_comes_to_nothing_and_to_itself():
    fed = FedAvg(net(), data(), LocalTraining(), KASHIN)
    fed.run(2)
    stranger = FedAvg(net(), data(), LocalTraining(), KASHIN, seed=1).clients[1]
    mine, fed.clients[1] = fed.clients[1], stranger
    row = fed.run(2)[-1]
    assert row.clients == [0, 2] and "another configuration" in row.left_out[1] and "seed 1" in row.left_out[1]
    fed.clients[1] = mine
    assert fed.run(1)[0].clients == [0, 1, 2]
    assert mine.link.view.tobytes() == fed.clients[0].link.view.tobytes()


def test_where_all_fail_the_model_stays():
    fed = FedAvg(net(), data(), LocalTraining(), KASHIN, drops=lambda r, i: r == 2)
    fed.run(1)
    before = fed.server.state_dict()
    (row,) = fed.run(1)
    assert row.clients == [] and math.isnan(row.loss) and len(row.left_out) == 3
    assert fed.server.x is before["x"] and fed.server.view is before["view"] and fed.server.version == before["version"]
    assert fed.run(1)[0].clients == [0, 1, 2]


def test_where_all_who_were_heard_fail_the_run_ends_and_can_go_on():
    """A mistake in the program would otherwise look like a run whose losses are NaN."""
    mended = []

    class Wrong(LocalTraining):
        def __call__(self, model, *rest):
            if not mended:
                raise AttributeError("no such layer")
            return super().__call__(model, *rest)

    fed = FedAvg(net(), data(), Wrong(), KASHIN, drops=lambda r, i: i == 2)
    before = vectors(fed.model)
    with pytest.raises(RuntimeError, match="round 1: client 0: AttributeError: no such layer; client 1: Attr"):
        fed.run(3)
    assert [row.clients for row in fed.rounds] == [[]] and vectors(fed.model).tobytes() == before.tobytes()
    mended.append(True)
    assert [row.clients for row in fed.run(2)] == [[0, 1]] * 2


def test_a_batch_of_one_is_not_left_alone():
    class Seen(nn.Flatten):
        def forward(self, x):
            if self.training:
                seen.append(len(x))
            return super().forward(x)

    def norm():
        torch.manual_seed(0)
        return nn.Sequential(Seen(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    training = LocalTraining(batch=8)
    for m, sizes in ((17, [8, 9]), (9, [9]), (8, [8]), (18, [8, 8, 2]), (7, [7])):
        seen = []
        (row,) = FedAvg(norm(), data(sizes=[m]), training).run(1)
        assert seen == sizes and row.clients == [0]
        assert training.time(m, 0, norm()) == pytest.approx(0.1 * len(sizes))
        assert training.time(m) == pytest.approx(0.1 * -(-m // 8))
    seen = []
    LocalTraining(batch=8)(nn.Sequential(Seen(), nn.Linear(16, 3)), *tensors(*data(m=17)[0]), {}, compress.Key(0))
    assert seen == [8, 8, 1]  # without BatchNorm one image is as good as many
    LocalTraining(batch=1)(net(norm=False), *tensors(*data(m=3)[0]), {}, compress.Key(0))
    with pytest.raises(RuntimeError, match=r"training on one image a step, of 1 with batch 8: .*more than 1 value"):
        FedAvg(norm(), data(sizes=[1]), training).run(1)
    with pytest.raises(RuntimeError, match=r"training on one image a step, of 3 with batch 1: .*more than 1 value"):
        FedAvg(norm(), data(sizes=[3]), LocalTraining(batch=1)).run(1)


@pytest.mark.parametrize("label, said", [(-100, "from -100 to"), (11, "to 11")])
def test_labels_that_are_no_class_are_named(label, said):
    images, labels = data()[0]
    labels = labels.copy()
    labels[5] = label
    with pytest.raises(ValueError, match=rf"labels are .*{said}.*, the model has classes from 0 to 2"):
        fine_tune(net(), images, labels, LocalTraining())


def test_a_loss_that_is_not_finite_is_laid_to_images_first():
    images, labels = data()[0]
    training = LocalTraining(lr=1e30, epochs=9)
    with pytest.raises(ValueError, match=r"a smaller lr than 1e\+30 may help"):
        fine_tune(net(norm=False), images, labels, training)
    with pytest.raises(ValueError, match="the loss is nan in epoch 1: 1 of 40 images have NaN or Inf"):
        fine_tune(net(norm=False), with_nan(images), labels, training)


def test_a_round_survives_what_its_evaluation_raises():
    def evaluate(model):
        raise OSError("disk is full")

    fed = FedAvg(net(), data(), LocalTraining())
    with pytest.raises(OSError, match="disk"):
        fed.run(2, evaluate)
    assert [(row.round, row.clients, row.metrics) for row in fed.rounds] == [(1, [0, 1, 2], {})]
    assert fed.run(1, lambda model: {"a": 1})[0].metrics == {"a": 1} == fed.rounds[1].metrics


def test_what_drops_raises_leaves_no_trace():
    def drops(round, i):
        if not mended:
            raise KeyError(i)
        return i == 1

    mended = []
    fed = FedAvg(net(), data(), LocalTraining(), KASHIN, drops=drops)
    with pytest.raises(KeyError):
        fed.run(1)
    assert fed.comm.ledger == compress.Ledger() and fed.server.round == 0 and not fed.rounds
    mended.append(True)
    other = FedAvg(net(), data(), LocalTraining(), KASHIN, drops=lambda r, i: i == 1)
    assert [row[:6] for row in fed.run(2)] == [row[:6] for row in other.run(2)]


def test_an_interrupted_round_is_as_if_its_answers_were_lost():
    class Interrupted(LocalTraining):
        def __call__(self, model, images, labels, *rest):
            if len(labels) == 11 and fed.server.round == 2:
                raise KeyboardInterrupt
            return super().__call__(model, images, labels, *rest)

    fed = FedAvg(net(), shards_of_10(), Interrupted(), KASHIN)
    with pytest.raises(KeyboardInterrupt):
        fed.run(3)
    fed.run(1)
    assert [row.round for row in fed.rounds] == [1, 3] and fed.rounds[1].clients == [0, 1, 2]
    other = FedAvg(net(), shards_of_10(), LocalTraining(), KASHIN, drops=lambda r, i: r == 2)
    other.run(3)
    assert vectors(fed.server_model).tobytes() == vectors(other.server_model).tobytes()


def test_updates_that_overflow_are_named():
    def explode(model):
        with torch.no_grad():
            model[-1].bias.fill_(3e38)
            model[-1].bias[1:] = -3e38

    fed = FedAvg(net(), data(sizes=[10]), failing(0, explode), Links())
    with np.errstate(all="ignore"), pytest.raises(RuntimeError, match=r"client 0: .*(finite|inf|nan)"):
        fed.run(3)
    assert fed.rounds[-1].left_out and np.isfinite(vectors(fed.model)).all()


def test_raise_names_all_and_keeps_the_row():
    fed = FedAvg(net(), data(), LocalTraining(), on_failure="raise", drops=lambda r, i: r == 2 and i > 0)
    with pytest.raises(RuntimeError, match="round 2: client 1: no answer; client 2: no answer"):
        fed.run(5)
    assert [row.round for row in fed.rounds] == [1, 2]
    assert fed.run(1)[0].round == 3


def test_personal_models_are_up_to_date_whatever_happens():
    fed = FedAvg(net(), data(), LocalTraining(), mixture=3, on_failure="raise", drops=lambda r, i: r == 2 and i > 0)
    with pytest.raises(RuntimeError, match="round 2"):
        fed.run(2)
    other = FedAvg(net(), data(), LocalTraining(), mixture=3, drops=lambda r, i: r == 2 and i > 0)
    other.run(2)
    assert vectors(fed.personal(0)).tobytes() == vectors(other.personal(0)).tobytes()

    def evaluate(model):
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk"):
        fed.run(1, evaluate)
    other.run(1)
    assert vectors(fed.personal(1)).tobytes() == vectors(other.personal(1)).tobytes()


def test_a_sample_takes_part():
    fed = FedAvg(net(), data(6), LocalTraining(), KASHIN, sample=2)
    rows = fed.run(12)
    assert all(len(row.clients) == 2 and not row.left_out for row in rows)
    assert {i for row in rows for i in row.clients} == set(range(6))
    assert len({tuple(row.clients) for row in rows}) > 4
    versions = [client.link.version for client in fed.clients.values()]
    assert len(set(versions)) > 2  # and some have missed much


# Parameters


@pytest.mark.parametrize(
    "named, error, said",
    [
        ({"sample": 0}, ValueError, r"sample must be in \[1, 3\], got 0"),
        ({"sample": 4}, ValueError, r"sample must be in \[1, 3\], got 4"),
        ({"mixture": -1}, ValueError, "mixture must be at least 0, got -1"),
        ({"mixture": math.nan}, ValueError, "mixture must be at least 0, got nan"),
        ({"mixture": "1"}, TypeError, "mixture must be a number or None, got '1'"),
        ({"mixture": True}, TypeError, "mixture must be a number or None, got True"),
        ({"model": "net"}, TypeError, "model must be a Module, got 'net'"),
        ({"training": 0.1}, TypeError, "training must be a LocalTraining, got 0.1"),
        ({"links": compress.Eden(1)}, TypeError, r"links must be a Links, got Eden\("),
        ({"comm": 3}, TypeError, "comm must be a Communicator, got 3"),
        ({"drops": 0.5}, TypeError, "drops must be a function"),
        ({"shards": []}, ValueError, "there are no shards"),
        ({"weights": "size"}, ValueError, "weights must be one of examples, uniform, got 'size'"),
        ({"on_failure": "ignore"}, ValueError, "on_failure must be one of"),
        ({"comm": compress.Local(2)}, ValueError, "3 shards, and a communicator of 2 workers"),
        ({"seed": -1}, ValueError, "seed must lie"),
        ({"links": Links(compress.Trellis(2, unbiased=True))}, TypeError, "Trellis"),
    ],
)
def test_parameters_are_checked(named, error, said):
    with pytest.raises(error, match=said):
        FedAvg(**{"model": net(), "shards": data(), "training": LocalTraining()} | named)


@pytest.mark.parametrize(
    "shard, said",
    [
        ((np.zeros((0, 1, 4, 4)), []), "shard 1 is empty: every client needs an example"),
        ((np.zeros((3, 1, 4, 4)), [0, 1]), r"shard 1: images of shape \(3, 1, 4, 4\) and labels of shape \(2,\)"),
        ((np.zeros((2, 1, 4, 4)), [0.5, 1]), "shard 1: labels must be whole numbers"),
        (np.zeros(3), r"shard 1: it must be a pair \(images, labels\), got a ndarray"),
        (np.zeros((2, 2, 4)), "shard 1: it must be a pair"),
        (torch.utils.data.TensorDataset(torch.zeros(2, 1), torch.zeros(2)), "shard 1: it must be a pair .* TensorDat"),
        ((np.zeros((2, 1, 4, 4)), [0, 1], [0, 1]), "shard 1: it must be a pair .* got a tuple of 3"),
        ((np.zeros((2, 1, 4, 4), np.uint8), [0, 1]), "shard 1: images must be of floats, got torch.uint8: .* by 255"),
    ],
)
def test_shards_are_checked(shard, said):
    shards = data()
    shards[1] = shard
    with pytest.raises(ValueError, match=said):
        FedAvg(net(), shards, LocalTraining())


@pytest.mark.parametrize(
    "named, error",
    [
        ({"lr": -1}, ValueError),
        ({"lr": math.inf}, ValueError),
        ({"lr": math.nan}, ValueError),
        ({"momentum": 1}, ValueError),
        ({"epochs": 0}, ValueError),
        ({"batch": 1.5}, TypeError),
        ({"milestones": 0}, ValueError),
        ({"augment": 3}, TypeError),
        ({"weight_decay": -1e-3}, ValueError),
    ],
)
def test_local_training_is_checked(named, error):
    with pytest.raises(error, match=next(iter(named))):
        LocalTraining(**named)


def test_every_is_checked():
    with pytest.raises(ValueError, match="every"):
        FedAvg(net(), data(), LocalTraining()).run(1, every=0)


# Seeds and states


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def bits(seed, dropout=0.3):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 3))
        torch.manual_seed(np.random.SeedSequence().entropy % 2**60)  # nothing comes from here
        state = torch.get_rng_state()
        augment = lambda images, generator: images + torch.empty_like(images).normal_(0, 0.1, generator=generator)  # noqa: E731
        fed = FedAvg(model, data(), LocalTraining(batch=8, augment=augment), KASHIN, sample=2, seed=seed)
        fed.run(3)
        assert torch.equal(torch.get_rng_state(), state)
        return vectors(fed.model).tobytes()

    assert bits(0) == bits(0) != bits(1)
    assert bits(0) != bits(0, dropout=0.2)


@pytest.mark.parametrize("memory, mixture", [("error", None), ("shift", None), ("shift", 1.0)])
def test_a_saved_run_goes_on_to_the_same_bits(memory, mixture):
    """Through a file, read with weights_only=True."""

    def make():
        links = Links(compress.Kashin(3), compress.Kashin(3), memory)
        training = LocalTraining(momentum=0.9, milestones=2, batch=16, epochs=2)
        lost = lambda r, i: (r + i) % 3 == 0  # noqa: E731
        return FedAvg(net(), data(4), training, links, sample=3, mixture=mixture, drops=lost)

    whole, first, second = make(), make(), make()
    evaluate = lambda model: {"norm": np.float32(np.linalg.norm(vectors(model)))}  # noqa: E731
    rows = whole.run(8, evaluate)
    first.run(4, evaluate)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first.run(1)  # what is saved does not move with it
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    if mixture is not None:
        file.seek(0)
        third = make()
        third.load_state_dict(torch.load(file, weights_only=True))
        assert vectors(third.personal(1)).tobytes() == vectors(second.personal(1)).tobytes()
    again = second.run(4, evaluate)
    assert second.rounds[:4] != [] and [r._replace(seconds=0) for r in second.rounds] == [
        r._replace(seconds=0) for r in rows
    ]
    assert again == second.rounds[4:] and second.comm.ledger == whole.comm.ledger
    assert vectors(second.model).tobytes() == vectors(whole.model).tobytes()
    assert vectors(second.server_model).tobytes() == vectors(whole.server_model).tobytes()
    if mixture is not None:
        assert vectors(second.personal(1)).tobytes() == vectors(whole.personal(1)).tobytes()


def test_a_state_of_another_federation_is_refused():
    fed = FedAvg(net(), data(), LocalTraining(), KASHIN)
    before = fed.state_dict()
    with pytest.raises(ValueError, match="no state of a FedAvg: it has no server, clients"):
        fed.load_state_dict({})
    with pytest.raises(ValueError, match=r"clients \[0, 1, 2, 3\], here are \[0, 1, 2\]"):
        fed.load_state_dict(FedAvg(net(), data(4), LocalTraining(), KASHIN).state_dict())
    with pytest.raises(ValueError, match="seed 1"):
        fed.load_state_dict(FedAvg(net(), data(), LocalTraining(), KASHIN, seed=1).state_dict())
    settings = {
        "training": ({"training": LocalTraining(lr=0.2)}, r"training LocalTraining\(lr=0.2.*here it is .*lr=0.1"),
        "mixture": ({"mixture": 1}, "mixture 1.0, here it is None"),
        "weights": ({"weights": "uniform"}, "weights 'uniform', here it is 'examples'"),
        "sample": ({"sample": 2}, "sample 2, here it is 3"),
    }
    for changed, said in settings.values():
        other = FedAvg(net(), data(), **{"training": LocalTraining(), "links": KASHIN} | changed)
        with pytest.raises(ValueError, match=f"the state is of {said}"):
            fed.load_state_dict(other.state_dict())
    assert fed.state_dict()["server"]["x"].data_ptr() == before["server"]["x"].data_ptr()
    noises = [LocalTraining(augment=lambda images, generator: images) for _ in range(2)]  # that live at two places
    one, other = (FedAvg(net(), data(), noise) for noise in noises)
    other.load_state_dict(one.state_dict())


def test_clients_that_know_the_same_share_its_memory():
    fed = FedAvg(net(), data(5), LocalTraining(), KASHIN, drops=lambda r, i: r == 3 and i == 4)
    assert len({id(client.link.view) for client in fed.clients.values()}) == 1
    fed.run(3)
    held = [client.link.view for client in fed.clients.values()]
    assert len({id(view) for view in held[:4]}) == 1 and held[4] is not held[0]
    fed.run(1)
    assert len({id(client.link.view) for client in fed.clients.values()}) == 1


def test_evaluation_is_of_the_model_after_the_round():
    fed = FedAvg(net(), data(), LocalTraining(lr=0.5))
    seen = []
    rows = fed.run(5, lambda model: seen.append(vectors(model)) or {"training": model.training}, every=2)
    assert [row.metrics for row in rows] == [{}, {"training": False}, {}, {"training": False}, {"training": False}]
    assert seen[-1].tobytes() == vectors(fed.model).tobytes() == vectors(fed.server_model).tobytes()
    other = FedAvg(net(), data(), LocalTraining(lr=0.5))
    other.run(2)
    assert vectors(other.model).tobytes() == seen[0].tobytes()


def test_a_round_says_itself_in_a_line():
    row = Round(12, math.nan, 0, 8, [], {}, 1.25, {"best": True, "name": "x", "accuracy": np.float64(0.98765)})
    assert str(row) == (
        "round 12: loss nan, up 0 kB, down 0.001 kB, 0 clients, 1.2 s, best True, name x, accuracy 0.9877"
    )


# Kinds of models


def test_frozen_parameters_and_constants_stay_and_do_not_travel():
    model = net()
    model.register_buffer("mask", torch.full((2,), -math.inf), persistent=False)
    model[0].requires_grad_(False)
    model.register_buffer("scale", torch.tensor([0.1, 0.3]))
    fed = FedAvg(model, data(7), LocalTraining(lr=0.5))
    assert fed.layout.d == 8 + 51 and fed.layout.statistics == 8 + 2
    fed.run(3)
    after = fed.model
    assert torch.equal(after[0].weight, model[0].weight) and torch.equal(after.mask, model.mask)
    assert torch.equal(after.scale, model.scale)  # to the bit, though it is averaged
    assert not torch.equal(after[4].weight, model[4].weight)
    assert not torch.equal(after[1].running_mean, model[1].running_mean)
    with pytest.raises(ValueError, match="no parameters to train"):
        FedAvg(model.requires_grad_(False), data(), LocalTraining())


def test_numbers_that_cannot_travel_are_named():
    model = net()
    model.register_buffer("mask", torch.full((2,), -math.inf))
    with pytest.raises(ValueError, match="mask has NaN or Inf; a constant buffer is registered with persistent=False"):
        FedAvg(model, data(), LocalTraining())
    with pytest.raises(TypeError, match=r"0\.weight is of torch.float16"):
        FedAvg(net().half(), data(), LocalTraining())


def test_tied_parameters_count_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.relu(self.a(x.flatten(1))))

    model = Tied()
    fed = FedAvg(model, data(), LocalTraining(lr=0.3), mixture=1)
    assert fed.layout.d == 256 + 32
    fed.run(2)
    for after in (fed.model, fed.personal(0), interpolate(0.5, fed.model, model)):
        assert after.b.weight is after.a.weight and not torch.equal(after.a.weight, model.a.weight)


@pytest.mark.parametrize("mixture", [None, 1.0])
def test_models_of_float64_train_in_float64(mixture):
    seen = set()

    class Wide(nn.Linear):
        def forward(self, x):
            seen.add(x.dtype)
            return super().forward(x.double())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Wide(16, 3)).double()
    fed = FedAvg(model, data(), LocalTraining(lr=0.3, momentum=0.9), mixture=mixture)
    rows = fed.run(4)
    assert rows[-1].loss < 0.5 * rows[0].loss and fed.model[1].weight.dtype == torch.float64
    assert fed.clients[0].optimizer["momentum"][0].dtype == torch.float64


def test_images_are_taken_to_the_floats_of_the_model():
    model, (images, labels) = net().double(), data()[0]
    (row,) = FedAvg(model, [(images, labels)], LocalTraining()).run(1)
    tuned = fine_tune(model, images, labels, LocalTraining(lr=0.3, epochs=5))
    assert row.clients == [0] and tuned[0].weight.dtype == torch.float64
    assert accuracy(tuned, images, labels) > 0.9
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        accuracy(tuned, images.astype(np.int64), labels)


def test_counts_of_batches_are_a_clients_own():
    shards = data(sizes=[16, 32, 48])
    fed = FedAvg(net(), shards, LocalTraining(batch=16), mixture=1)
    fed.run(3)
    assert [int(client.counts[0]) for client in fed.clients.values()] == [3, 6, 9]
    assert fed.personal(2)[1].num_batches_tracked == 9 and fed.model[1].num_batches_tracked == 0


def test_the_model_given_is_not_changed():
    model = net().eval()
    before = copy.deepcopy(model.state_dict())
    fed = FedAvg(model, data(), LocalTraining())
    fed.run(1)
    assert not model.training
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name


def test_a_layout_reads_copies_and_writes_what_it_read():
    model, other = net(0), net(1)
    layout = Layout(model)
    x, statistics = layout.read(model)
    kept = x.copy()
    with torch.no_grad():
        model[0].weight.zero_()
    assert x.tobytes() == kept.tobytes() and x.dtype == np.float32
    x.flags.writeable = False
    layout.write(other, x, statistics)
    assert all(np.array_equal(a, b) for a, b in zip(layout.read(other), (x, statistics), strict=True))
    single = nn.Linear(3, 1, bias=False)
    y, none = Layout(single).read(single)
    y[:] = 7
    assert none.size == 0 and not (single.weight == 7).any()


# Local training, and what is made of models


def test_local_training_is_torchs_sgd_on_its_schedule():
    """milestones over calls; weight decay and momentum of the settings, whatever an old state says."""
    training = LocalTraining(lr=0.5, epochs=2, milestones=3, factor=0.1)
    assert [training.rate(epoch) for epoch in (0, 2, 3, 5, 6)] == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
    assert training.time(130) == pytest.approx(3 * 2 * 0.5)
    assert LocalTraining(lr=0.5, epochs=2, milestones=3, momentum=0.9).time(64, done=2) == pytest.approx(0.55 / 0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    shard, state = tensors(*data()[0]), {}
    moved = []
    for call in range(3):
        before = vectors(model)
        LocalTraining(lr=0.5, epochs=2, milestones=2, factor=0.0, momentum=0)(model, *shard, state, compress.Key(call))
        moved.append(float(np.abs(vectors(model) - before).max()))
    assert moved[0] > 0.01 and moved[1:] == [0, 0] and state == {"epochs": 6}  # factor 0 from epoch 2 on
    with_momentum = {}
    LocalTraining(momentum=0.9)(model, *shard, with_momentum, compress.Key(0))
    assert len(with_momentum["momentum"]) == 2
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    LocalTraining(momentum=0)(one, *shard, with_momentum, compress.Key(1))
    LocalTraining(momentum=0)(other, *shard, {}, compress.Key(1))
    assert vectors(one).tobytes() == vectors(other).tobytes()


def test_a_failed_call_leaves_its_state():
    training, model, shard = LocalTraining(momentum=0.9), net(), tensors(*data()[0])
    state = {}
    training(model, *shard, state, compress.Key(0))
    kept = copy.deepcopy(state)
    with pytest.raises(ValueError, match="the loss is nan"):
        training(model, shard[0] * math.nan, shard[1], state, compress.Key(1))
    assert state["epochs"] == kept["epochs"]
    assert all(torch.equal(a, b) for a, b in zip(state["momentum"], kept["momentum"], strict=True))
    with pytest.raises(ValueError, match="an empty shard"):
        training(model, shard[0][:0], shard[1][:0], state, compress.Key(1))
    with pytest.raises(ValueError, match="shorter"):  # of a model of fewer parameters
        training(model, *shard, {"momentum": state["momentum"][:1]}, compress.Key(1))


def test_augmentation_sees_batches_and_a_generator():
    seen = []

    class Noise:
        def draw(self, images, generator):
            seen.append((tuple(images.shape), torch.rand(1, generator=generator).item()))
            return images

    shard = tensors(*data(m=20)[0])
    for _ in range(2):
        LocalTraining(batch=16, augment=Noise())(net(), *shard, {}, compress.Key(3))
    assert [shape for shape, _ in seen] == [(16, 1, 4, 4), (4, 1, 4, 4)] * 2
    assert seen[:2] == seen[2:] and seen[0][1] != seen[1][1]
    flat = LocalTraining(augment=lambda images, generator: 0 * images)
    still = LocalTraining()
    a, b, c = net(norm=False), net(norm=False), net(norm=False)
    flat(a, *shard, {}, compress.Key(0))
    still(b, 0 * shard[0], shard[1], {}, compress.Key(0))
    still(c, *shard, {}, compress.Key(0))
    assert vectors(a).tobytes() == vectors(b).tobytes() != vectors(c).tobytes()


def test_fine_tuning_goes_on_from_a_clients_state():
    shards, training = data(), LocalTraining(lr=0.2, momentum=0.9, milestones=2)
    fed = FedAvg(net(), shards, training)
    fed.run(2)
    state = fed.clients[0].optimizer
    kept = copy.deepcopy(state)
    model, before = fed.model, vectors(fed.model)
    tuned, fresh = (fine_tune(model, *shards[0], training, seed=5, state=s) for s in (state, None))
    assert not tuned.training and vectors(model).tobytes() == before.tobytes()
    assert state["epochs"] == kept["epochs"] == 2 and torch.equal(state["momentum"][0], kept["momentum"][0])
    expected, his = copy.deepcopy(model), copy.deepcopy(kept)
    training(expected, *tensors(*shards[0]), his, compress.Key(5).worker(0))
    assert vectors(tuned).tobytes() == vectors(expected).tobytes() != vectors(fresh).tobytes()
    assert accuracy(tuned, *shards[0]) >= accuracy(net(), *shards[0])


def test_interpolation_is_exact_at_its_ends_and_linear_between():
    a, b = net(0).double(), net(1).double()
    a[1].running_mean += 2
    assert vectors(interpolate(1, a, b)).tobytes() == vectors(a).tobytes()
    assert vectors(interpolate(0, a, b)).tobytes() == vectors(b).tobytes()
    np.testing.assert_allclose(vectors(interpolate(0.3, a, b)), 0.3 * vectors(a) + 0.7 * vectors(b), atol=1e-12)
    assert not interpolate(0.5, a, b).training
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share must lie in"):
            interpolate(share, a, b)
    one, other = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)  # as many numbers
    with pytest.raises(ValueError, match="models of other shapes"):
        interpolate(0.5, one, other)


def test_accuracy_counts_in_eval_mode_and_leaves_modes():
    class Says(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.drop = nn.Parameter(torch.zeros(1)), nn.Dropout(0.99)
            self.drop.eval()

        def forward(self, x):
            assert not self.training
            return functional.one_hot(x.flatten(1)[:, 0].long(), 4).float()

    model = Says()
    images = np.arange(10.0).reshape(-1, 1) % 4
    images.flags.writeable = False
    labels = np.where(np.arange(10) < 7, images[:, 0], 3 - images[:, 0])
    assert accuracy(model, images, labels, batch=4) == 0.7
    assert model.training and not model.drop.training
    with pytest.raises(ValueError, match="no images"):
        accuracy(model, images[:0], labels[:0])
    with pytest.raises(AssertionError):
        model(torch.zeros(1, 1))


# Models


def test_resnet18_has_its_parameters():
    model = resnet18()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)] == [
        128,
        256,
        512,
    ]
    sizes = []
    for stage in (model.stem, model.stage1, model.stage2, model.stage3, model.stage4):
        stage.register_forward_hook(lambda module, given, out: sizes.append(tuple(out.shape[1:])))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert Layout(model).d == 11_173_962 and Layout(model).statistics == 2 * 4800
    grey = resnet18(1, 4, mean=0.1307, std=0.3081)
    assert grey(torch.rand(2, 1, 16, 16)).shape == (2, 4)


def test_a_residual_block_adds_its_input():
    block = resnet18().stage1[0].eval()
    with torch.no_grad():
        for p in block.path.parameters():
            p.zero_()
        x = torch.randn(1, 64, 4, 4)
        assert torch.equal(block(x), torch.relu(x))


@pytest.mark.parametrize("size", [8, 16, 28, 32])
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_the_small_network_takes_all_sizes(size, norm):
    model = SmallCNN(2, 5, width=16, norm=norm)
    assert model(torch.rand(3, 2, size, size)).shape == (3, 5)
    assert Layout(model).statistics == (2 * 48 if norm == "batch" else 0)
    assert sum(p.numel() for p in SmallCNN(1, 10).parameters()) == 9_930


def test_images_are_normalised_inside_and_of_the_right_channels():
    layer = Normalize(3, (0.1, 0.2, 0.3), (0.5, 1, 2))
    x = torch.rand(2, 3, 4, 4)
    for c, (mean, std) in enumerate(((0.1, 0.5), (0.2, 1), (0.3, 2))):
        torch.testing.assert_close(layer(x)[:, c], (x[:, c] - mean) / std)
    with pytest.raises(ValueError, match=r"images must be \(m, 3, h, w\), got \(2, 1, 4, 4\)"):
        layer(x[:, :1])
    assert not layer.state_dict()
    for named in ({"std": 0}, {"std": (1, 1)}, {"mean": math.nan}):
        with pytest.raises(ValueError, match=next(iter(named))):
            Normalize(3, **named)
    with pytest.raises(ValueError, match="norm must be one of"):
        SmallCNN(1, 2, norm="layer")
    with pytest.raises(ValueError, match="width must be a multiple of 8"):
        SmallCNN(1, 2, width=12, norm="group")
