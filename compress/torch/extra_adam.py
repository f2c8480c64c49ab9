"""ExtraAdam: extragradient with Adam's steps.

Mishchenko, Kovalev, Shulgin, Richtarik, Malitsky, "Revisiting Stochastic Extragradient", AISTATS 2020,
arXiv 1905.11373; with independent samples, Gidel, Berard, Vignoud, Vincent, Lacoste-Julien, "A Variational Inequality
Perspective on Generative Adversarial Networks", ICLR 2019, arXiv 1802.10551.
"""

from __future__ import annotations

import math

import torch

# Keys of a group that torch or its schedulers look after.
_OF_TORCH = {"params", "param_names", "differentiable", "initial_lr", "min_lr", "max_lr", "swa_lr"}
_OF_TORCH |= {"base_momentum", "max_momentum"}


class ExtraAdam(torch.optim.Optimizer):
    """Extragradient with Adam's steps: look ahead by one, then step from where one stood by what was seen there.

        extrapolation()  p_0 = p,  p <- p + U(g at p)
        step()           p <- p_0 + U(g at the p looked ahead to)
        U(g)             t <- t + 1,  m <- beta_1 m + (1 - beta_1) g,  v <- beta_2 v + (1 - beta_2) g^2,
                         U = -lr sqrt(1 - beta_2^t)/(1 - beta_1^t) m/(sqrt(v) + eps)

    Both half steps share one m, v and t, as in the code of Gidel et al. It is the caller who computes both gradients on
    the same sample, which is the paper's change: the same batch, the same noise, the same dropout masks. Players of a
    game go into one optimizer, in groups with a step size each, or into one each, where all look ahead before any
    steps. Each g is the gradient of what its player wants small.

    params, lr, betas, eps: as for torch.optim.Adam, whose eps this one adds before the correction of v. Momentum
    slows games down, and beta_1 = 0.5 or 0 are usual.

    step(closure) does all of it: the closure zeroes and computes all gradients, of the same sample whenever it is
    called, and returns a loss. Without one, step() follows extrapolation(). Where step() is interrupted, or the closure
    raises, parameters are back where they were before; m, v and t have seen the first gradient.

    Raises ValueError for other parameters and for groups with other settings than these three, also of a state that is
    loaded (those of Adam have weight_decay, amsgrad and more, which would change nothing here); RuntimeError for step()
    before extrapolation(), for two of either in a row, for sparse or complex gradients, and for float16, to which eps
    and squares of small gradients are 0.

    >>> x, y = (torch.ones(3, requires_grad=True) for _ in range(2))
    >>> optimizer = ExtraAdam([{"params": [x]}, {"params": [y], "lr": 0.02}], lr=0.01, betas=(0.5, 0.9))
    >>> def players():  # min over x, max over y of x'y
    ...     x.grad, y.grad = y.detach().clone(), -x.detach()
    ...     return x.detach() @ y.detach()
    >>> for _ in range(2000):
    ...     value = optimizer.step(players)
    >>> bool(x.norm() + y.norm() < 0.5)
    True
    """

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def add_param_group(self, param_group):
        _check(self.defaults | param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict):
        for group in state_dict["param_groups"]:
            _check(group)
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def extrapolation(self) -> None:
        """Look ahead: parameters move to where the second gradient is asked for."""
        if self._ahead():
            raise RuntimeError("ExtraAdam: extrapolation() was called twice, step() comes next")
        for group, p in self._moving():
            self.state[p]["origin"] = p.clone()
            p.add_(self._update(group, p))

    @torch.no_grad()
    def step(self, closure=None):
        """Step, from where extrapolation() started; with a closure, do both. Returns what the closure first did."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.extrapolation()
        elif not self._ahead():
            raise RuntimeError(
                "ExtraAdam: step() comes after extrapolation(), which found no gradients or was not called"
            )
        try:
            if closure is not None:
                with torch.enable_grad():
                    closure()
            moves = [(p, self._update(group, p)) for group, p in self._moving()]
        finally:
            for p in self._ahead():
                p.copy_(self.state[p].pop("origin"))
        for p, move in moves:
            p.add_(move)
        return loss

    def _ahead(self):
        """The parameters that are not where their next step starts."""
        return [p for p, state in self.state.items() if "origin" in state]

    def _moving(self):
        """(group, parameter) for all that have a gradient."""
        moving = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, p in moving:
            if p.grad.is_sparse or p.is_complex() or p.dtype == torch.float16:
                raise RuntimeError(
                    "ExtraAdam takes dense real gradients of float32, float64 or bfloat16, "
                    f"got {p.grad.layout} of {p.grad.dtype}"
                )
        return moving

    def _update(self, group, p):
        """U(g), and m, v and t moved on."""
        state, (beta1, beta2) = self.state[p], group["betas"]
        if "step" not in state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        t, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        size = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return v.sqrt().add_(group["eps"]).reciprocal_().mul_(m).mul_(-size)


def _check(group) -> None:
    """ValueError unless a group has lr, betas and eps alone, and they are fit."""
    if unknown := group.keys() - {"lr", "betas", "eps"} - _OF_TORCH:
        raise ValueError(f"ExtraAdam: a group has lr, betas and eps, got {', '.join(sorted(unknown))}")
    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    if not 0 <= lr < math.inf:
        raise ValueError(f"ExtraAdam: lr must be finite and at least 0, got {lr}")
    if not 0 < eps < math.inf:
        raise ValueError(f"ExtraAdam: eps must be positive and finite, got {eps}")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"ExtraAdam: betas must be two numbers in [0, 1), got {betas!r}")
