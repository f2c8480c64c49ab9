"""ExtraAdam against its formula in NumPy, as a torch optimizer, and on the game that Adam spirals about."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compress.torch import ExtraAdam  # noqa: E402


class Reference:
    """One parameter in NumPy: the update of Gidel et al., and both half steps."""

    def __init__(self, p, lr, beta1, beta2, eps=1e-8):
        self.p, self.lr, self.beta1, self.beta2, self.eps = p.copy(), lr, beta1, beta2, eps
        self.m, self.v, self.t = np.zeros_like(p), np.zeros_like(p), 0

    def update(self, g):
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        size = self.lr * math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        return -size * self.m / (np.sqrt(self.v) + self.eps)

    def extrapolation(self, g):
        self.origin = self.p.copy()
        self.p = self.p + self.update(g)

    def step(self, g):
        self.p = self.origin + self.update(g)


def players(d=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


def game(x, y):
    """Gradients of min over x, max over y of x'y."""
    x.grad, y.grad = y.detach().clone(), -x.detach().clone()


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.5, 0.9), (0.9, 0.999)])
def test_half_steps_are_the_formula(betas):
    x, y = players()
    optimizer = ExtraAdam([{"params": [x], "lr": 0.03}, {"params": [y]}], lr=0.01, betas=betas)
    a, b = Reference(x.detach().numpy(), 0.03, *betas), Reference(y.detach().numpy(), 0.01, *betas)
    for _ in range(50):
        for theirs, ours in (("extrapolation", optimizer.extrapolation), ("step", optimizer.step)):
            u, v = a.p, b.p
            getattr(a, theirs)(v)
            getattr(b, theirs)(-u)
            game(x, y)
            ours()
            assert x.detach().numpy() == pytest.approx(a.p, rel=1e-12)
            assert y.detach().numpy() == pytest.approx(b.p, rel=1e-12)


def test_a_closure_does_both_half_steps():
    one, two = players(), players()
    with_closure, by_hand = ExtraAdam(one, lr=0.1), ExtraAdam(two, lr=0.1)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        game(*one)
        calls.append(float(one[0].detach() @ one[1].detach()))
        return calls[-1]

    for _ in range(5):
        game(*two)
        by_hand.extrapolation()
        game(*two)
        by_hand.step()
        value = with_closure.step(closure)
        assert value == calls[-2] != calls[-1]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and len(calls) == 10


def test_players_of_one_optimizer_and_of_two_are_the_same():
    together, apart = players(), players()
    one, two = ExtraAdam(together, lr=0.1), [ExtraAdam([p], lr=0.1) for p in apart]
    for _ in range(5):
        for half in ("extrapolation", "step"):
            game(*together)
            getattr(one, half)()
            game(*apart)
            for optimizer in two:
                getattr(optimizer, half)()
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("halves", [6, 7])
def test_it_goes_on_from_a_saved_state(halves, tmp_path):
    """Also from one between the half steps."""

    def take(optimizer, p, first, last):
        for k in range(first, last):
            game(*p)
            (optimizer.step if k % 2 else optimizer.extrapolation)()

    whole, broken = players(), players()
    take(ExtraAdam(whole, lr=0.1), whole, 0, 12)
    optimizer = ExtraAdam(broken, lr=0.1)
    take(optimizer, broken, 0, halves)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    again = [p.detach().clone().requires_grad_() for p in broken]
    restored = ExtraAdam(again, lr=1.0)
    restored.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    take(restored, again, halves, 12)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_parameters_is_kept(dtype):
    x, y = players(dtype=dtype)
    optimizer = ExtraAdam([x, y], lr=0.1)
    game(x, y)
    optimizer.extrapolation()
    game(x, y)
    optimizer.step()
    assert {
        value.dtype for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    } == {dtype}
    assert x.dtype == dtype and "origin" not in optimizer.state[x]


def test_parameters_without_a_gradient_stay():
    x, y = players()
    frozen = torch.ones(3, requires_grad=True)
    optimizer = ExtraAdam([x, y, frozen], lr=0.1)
    game(x, y)
    optimizer.extrapolation()
    start = {"x": x.detach().clone(), "origin": optimizer.state[x]["origin"].clone()}
    game(x, y)
    x.grad = None  # gone in the second half: the step is none, and nobody stays where they looked ahead to
    optimizer.step()
    assert not torch.equal(start["x"], start["origin"]) and torch.equal(x, start["origin"])
    assert torch.equal(frozen, torch.ones(3)) and frozen not in optimizer.state


def test_a_closure_may_find_no_gradients():
    """As for torch.optim.Adam; and where it finds one in the second half alone, the step is from where one stands."""
    x, y = players()
    start, optimizer = x.detach().clone(), ExtraAdam([x, y], lr=0.1, betas=(0.0, 0.0))
    assert optimizer.step(lambda: 7.0) == 7.0 and torch.equal(x, start) and not optimizer.state
    gradients = iter([None, torch.ones(5, dtype=torch.float64)])

    def closure():
        x.grad = next(gradients)

    optimizer.step(closure)
    assert x.detach().numpy() == pytest.approx(start.numpy() - 0.1, rel=1e-6) and y not in optimizer.state


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("where", ["closure", "gradient"])
def test_parameters_are_back_where_a_step_is_interrupted(where):
    """In its second half, and it goes on from there."""
    x, y = players()
    optimizer, calls = ExtraAdam([x, y], lr=0.1), []

    def closure():
        calls.append(None)
        game(x, y)
        if len(calls) == 2:
            if where == "closure":
                raise Interrupt
            y.grad = y.grad.to_sparse()

    before = x.detach().clone(), y.detach().clone()
    with pytest.raises(
        Interrupt if where == "closure" else RuntimeError, match=None if where == "closure" else "dense"
    ):
        optimizer.step(closure)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert not any("origin" in state for state in optimizer.state.values())
    optimizer.step(closure)
    assert len(calls) == 4 and not torch.equal(x, before[0])


def test_states_of_schedulers_and_of_later_groups_load():
    """Also settings that torch gives groups of its own accord."""
    x, y = players()
    optimizer = ExtraAdam([x], lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=5)
    torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [y]})
    other = ExtraAdam([{"params": [x]}, {"params": [y]}])
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]


def test_groups_of_named_parameters_and_of_schedulers():
    x, y = players()
    optimizer = ExtraAdam([{"params": [x], "initial_lr": 0.1}, {"params": [y], "initial_lr": 0.2}], lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k), last_epoch=0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])
    ExtraAdam([("x", x), ("y", y)])


def test_schedulers_set_its_steps():
    x, y = players()
    optimizer = ExtraAdam([x, y], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
    for k in range(3):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / (1 + k))
        game(x, y)
        optimizer.extrapolation()
        game(x, y)
        optimizer.step()
        schedule.step()


def test_it_converges_where_adam_does_not():
    """f = x'y with beta_1 = 0, beta_2 = 0.999."""
    ends = {}
    for cls in (torch.optim.Adam, ExtraAdam):
        x, y = players(10)
        start = float(x.detach() @ x.detach() + y.detach() @ y.detach())
        optimizer = cls([x, y], lr=0.05, betas=(0.0, 0.999))
        for _ in range(1500):
            game(x, y)
            if cls is ExtraAdam:
                optimizer.extrapolation()
                game(x, y)
            optimizer.step()
        ends[cls] = float(x.detach() @ x.detach() + y.detach() @ y.detach()) / start
    assert ends[ExtraAdam] < 1e-3 < 2 < ends[torch.optim.Adam]


def with_gradient(gradient):
    p = torch.ones(3, dtype=gradient.dtype, requires_grad=True)
    p.grad = gradient
    return p


def looked_ahead():
    x, y = players()
    optimizer = ExtraAdam([x, y])
    game(x, y)
    optimizer.extrapolation()
    return optimizer


def half_precision():
    x, y = players(dtype=torch.float16)
    game(x, y)
    return ExtraAdam([x, y])


def loaded(cls, **more):
    x, y = players()
    ExtraAdam([x, y]).load_state_dict(cls([x, y], **more).state_dict())


BAD = [
    (lambda: ExtraAdam(players(), lr=-1.0), ValueError, "lr must be finite and at least 0, got -1"),
    (lambda: ExtraAdam(players(), lr=math.nan), ValueError, "got nan"),
    (lambda: ExtraAdam(players(), eps=0.0), ValueError, "eps must be positive and finite, got 0"),
    (
        lambda: ExtraAdam(players(), betas=(1.0, 0.9)),
        ValueError,
        r"betas must be two numbers in \[0, 1\), got \(1.0, 0.9\)",
    ),
    (lambda: ExtraAdam(players(), betas=0.9), ValueError, r"betas must be two numbers in \[0, 1\), got 0.9"),
    (
        lambda: loaded(torch.optim.Adam, weight_decay=0.1, maximize=True, amsgrad=True),
        ValueError,
        "a group has lr, betas and eps, got amsgrad, .*maximize, weight_decay",
    ),
    (lambda: loaded(torch.optim.SGD, lr=0.1), ValueError, "a group has lr, betas and eps, got dampening"),
    (lambda: ExtraAdam(players(), betas=(0.5, 0.9, 0.9)), ValueError, r"betas must be two .* got \(0.5, 0.9, 0.9\)"),
    (
        lambda: ExtraAdam([{"params": players(), "maximize": True, "weight_decay": 0.1}]),
        ValueError,
        "a group has lr, betas and eps, got maximize, weight_decay",
    ),
    (lambda: ExtraAdam([{"params": players(), "lr": -2.0}]), ValueError, "got -2"),
    (lambda: ExtraAdam([]), ValueError, "empty"),
    (lambda: ExtraAdam(players()).step(), RuntimeError, r"step\(\) comes after extrapolation\(\)"),
    (lambda: looked_ahead().extrapolation(), RuntimeError, "called twice"),
    (
        lambda: ExtraAdam([with_gradient(torch.ones(3).to_sparse())]).extrapolation(),
        RuntimeError,
        "got torch.sparse_coo",
    ),
    (lambda: ExtraAdam([with_gradient(torch.ones(3) * 1j)]).extrapolation(), RuntimeError, "dense real.*complex64"),
    (lambda: half_precision().extrapolation(), RuntimeError, "float32, float64 or bfloat16, got .* of torch.float16"),
]


@pytest.mark.parametrize("make, error, message", BAD, ids=range(len(BAD)))
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_gan_of_the_reproduction():
    pytest.importorskip("rich")
    from bench.papers import extragradient

    real = extragradient.mixture(4000, extragradient.seeded(0)).numpy()
    modes, share = extragradient.quality(real)
    assert modes == 8 and abs(share - (1 - math.exp(-4.5))) < 5e-3
    assert extragradient.quality(real[real[:, 0] > 0.5])[0] == 3 and extragradient.quality(0 * real) == (0, 0.0)
    one, same = (extragradient.Training.of("ExtraAdam", 3e-3, 10, seed=0, every=5) for _ in range(2))
    assert np.array_equal(one.samples, same.samples) and one.iterations == [5, 10]
    assert one.good() == (math.inf, math.inf) and one.samples.shape == (extragradient.MEASURED, 2)
