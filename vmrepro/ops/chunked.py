"""The selective scan in plain PyTorch, chunk by chunk of time: the fast path of a CPU, and it runs on any device.

Letters as in ``vmrepro.ops.reference``, and

    a       decay exp(Δ_t A)
    v       Δ_t u_t
    g       gradient of the loss by h_t
    T       steps in a chunk; G groups of channels that share B and C; K channels of a group; N states

Inside, arrays are time-major, (time, batch, G, N, K), so that one step is one contiguous block and each sum over states or
channels is a product of small matrices. A chunk stays in cache: its decays come from one call, its steps are one fused
multiply-add each, written over the inputs. The backward pass keeps only the state before each chunk and recomputes the rest:

    h_t = a_t h_{t-1} + B_t v_t          y_t = Σ_n C_t h_t
    g_t = C_t dy_t + a_{t+1} g_{t+1}     dC_t = Σ_k dy_t h_t     dB_t = Σ_k v_t g_t     dv_t = Σ_n B_t g_t
    p_t = g_t a_t h_{t-1}                dΔ_t = u_t dv_t + Σ_n A p_t     du_t = Δ_t dv_t     dA = Σ_t Δ_t p_t

which is the chain rule on the first line. Softplus, skip and gate are left to autograd.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vmrepro.ops.reference import skip_and_gate, step_size

# Numbers in one array of a chunk: small enough for the cache, large enough to hide the cost of a call.
CHUNK_NUMBERS = 1 << 19
# The state kept before a chunk is as large as N/T sequences (batch, length, channels): shorter chunks would keep too much.
MIN_STEPS = 8


def available(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``; never, so None."""
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan of ``vmrepro.ops.selective_scan``, computed in chunks; it has no second derivative."""
    wide = torch.promote_types(u.dtype, A.dtype)
    batch, length, channels = u.shape
    groups = math.lcm(*(V.shape[2] if V.ndim == 4 else 1 for V in (B, C)))
    shape = (length, batch, groups, 1, channels // groups)
    step = step_size(delta.to(wide), delta_bias, delta_softplus)
    step, u_wide = (x.transpose(0, 1).reshape(shape).contiguous() for x in (step, u.to(wide)))
    B, C = (_by_time(V.to(wide), groups) for V in (B, C))
    y, h = _Scan.apply(u_wide, step, _by_group(A.to(wide), groups), B, C, reverse)
    y = skip_and_gate(y.view(length, batch, channels).transpose(0, 1), u, D, z)
    return (y, h.transpose(2, 3).reshape(batch, channels, -1)) if return_last_state else y


def _by_group(M: Tensor, groups: int) -> Tensor:
    """(channels, N) as (G, N, K)."""
    return M.unflatten(0, (groups, -1)).transpose(1, 2).contiguous()


def _by_time(V: Tensor, groups: int) -> Tensor:
    """B or C as (time, batch, G, N, 1), or as (G, N, K) where it is fixed over time."""
    if V.ndim == 2:
        return _by_group(V, groups)
    V = V.unsqueeze(2) if V.ndim == 3 else V
    return V.repeat_interleave(groups // V.shape[2], dim=2).transpose(0, 1).unsqueeze(-1).contiguous()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        replay = _Replay(u, delta, A, B, reverse)
        h = u.new_zeros(u.shape[1:3] + A.shape[1:])
        y, boundaries = torch.empty_like(u), []
        with torch.autocast(u.device.type, enabled=False):
            for chunk in replay.chunks:
                boundaries.append(h)
                _, states = replay(chunk, h)
                y[chunk] = _over_states(_part(C, chunk), states)
                h = states[0 if reverse else -1].clone()
        ctx.save_for_backward(u, delta, A, B, C, *boundaries)
        ctx.reverse = reverse
        ctx.set_materialize_grads(False)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor | None, dh: Tensor | None):
        u, delta, A, B, C, *boundaries = ctx.saved_tensors
        replay = _Replay(u, delta, A, B, ctx.reverse)
        grads = replay.buffer()
        dy = torch.zeros_like(u) if dy is None else dy.contiguous()
        carry = torch.zeros_like(boundaries[0]) if dh is None else dh
        dv, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dA, dB, dC = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
        with torch.autocast(u.device.type, enabled=False):
            for chunk, boundary in reversed(list(zip(replay.chunks, boundaries, strict=True))):
                a, h = replay(chunk, boundary)
                g = torch.mul(_part(C, chunk), dy[chunk], out=grads.of(chunk))
                rows, factors = grads.steps(chunk, not ctx.reverse), replay.decays.steps(chunk, not ctx.reverse)
                rows[0].add_(carry)
                _walk(rows, factors)
                carry = factors[-1] * rows[-1]
                dv[chunk] = _over_states(_part(B, chunk), g)
                _add_over_channels(dC, chunk, h, dy[chunk])
                _add_over_channels(dB, chunk, g, replay.v[chunk])
                p = g.mul_(a)
                later, earlier = (slice(None, -1), slice(1, None)) if ctx.reverse else (slice(1, None), slice(None, -1))
                p[later].mul_(h[earlier])
                p[-1 if ctx.reverse else 0].mul_(boundary)
                ddelta[chunk] = torch.mul(p, A, out=h).sum(-2, keepdim=True)
                dA += p.mul_(delta[chunk]).sum((0, 1))
        return delta * dv, ddelta.addcmul_(u, dv), dA, dB, dC, None


class _Replay:
    """The decays and states of one chunk after another, from the state before it, always in the same memory."""

    def __init__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, reverse: bool):
        self.delta, self.A, self.v, self.B, self.reverse = delta, A, delta * u, B, reverse
        length, batch = u.shape[:2]
        wanted = max(MIN_STEPS, CHUNK_NUMBERS // (batch * A.numel()))
        self.steps = -(-length // max(1, round(length / wanted)))
        chunks = [slice(start, min(start + self.steps, length)) for start in range(0, length, self.steps)]
        self.chunks = chunks[::-1] if reverse else chunks
        self.decays, self.states = self.buffer(), self.buffer()

    def buffer(self) -> "_Buffer":
        return _Buffer((self.steps, self.v.shape[1], *self.A.shape), self.v)

    def __call__(self, chunk: slice, h: Tensor) -> tuple[Tensor, Tensor]:
        """(a, h_t) of every step of the chunk, (T, batch, G, N, K) each, valid until the next call."""
        a, states = self.decays.of(chunk), self.states.of(chunk)
        torch.exp(torch.mul(self.delta[chunk], self.A, out=states), out=a)
        torch.mul(self.v[chunk], _part(self.B, chunk), out=states)
        _walk((h, *self.states.steps(chunk, self.reverse)), self.decays.steps(chunk, self.reverse))
        return a, states


class _Buffer:
    """One array of a chunk, (T, batch, G, N, K), that every chunk reuses: fresh pages cost more than the arithmetic."""

    def __init__(self, shape: tuple[int, ...], like: Tensor):
        self.array = like.new_empty(shape)
        self.rows = self.array.unbind(0)

    def of(self, chunk: slice) -> Tensor:
        return self.array[: chunk.stop - chunk.start]

    def steps(self, chunk: slice, reverse: bool) -> tuple[Tensor, ...]:
        """The steps of the chunk as views, in the order in which they are walked."""
        rows = self.rows[: chunk.stop - chunk.start]
        return rows[::-1] if reverse else rows


def _part(V: Tensor, chunk: slice) -> Tensor:
    """B or C in a chunk of time: all of it, where it is fixed."""
    return V[chunk] if V.ndim == 5 else V


def _walk(rows: tuple[Tensor, ...], factors: tuple[Tensor, ...]) -> None:
    """Add to each row but the first factor times the row before it, in place; factors[i] leads from rows[i] to rows[i + 1]."""
    for before, row, factor in zip(rows, rows[1:], factors, strict=False):
        row.addcmul_(factor, before)


def _over_states(V: Tensor, x: Tensor) -> Tensor:
    """Σ_n V x, (T, batch, G, 1, K)."""
    return V.mT @ x if V.ndim == 5 else (V * x).sum(-2, keepdim=True)


def _add_over_channels(dV: Tensor, chunk: slice, x: Tensor, w: Tensor) -> None:
    """Add the gradient Σ_k w x of B or C to dV; summed over time and batch too, where B or C is fixed."""
    if dV.ndim == 5:
        dV[chunk] = x @ w.mT
    else:
        dV += (x * w).sum((0, 1))
