r"""Log-likelihood, score and information of a latent mixture, computed in one pass over the data.

The *score* is the gradient of the log-likelihood. Let r_j be the responsibilities, and S_j the gradient of
log pi_j + log p_j. Louis' identity (1982) states for each observation

    score = sum_j r_j S_j,    observed information = sum_j r_j (-dS_j) - sum_j r_j S_j S_j' + score score'.

The parameters enter S_j through few *predictors*, each linear in (1, x): the scores of the gate, the means m_j and the
log sd_j. Every sum over observations is therefore a sum of derivatives in two predictors, times the monomials of
(1, x)(1, x)'. It is computed as one matrix product of weights (rows, n) with monomials (n, q).

The *complete information* is that of data in which the components are observed. It is block diagonal and positive; its
inverse times the score is one step of Fisher scoring in the M-step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from moe_prompt.likelihood.models import HALF_LOG_2PI, GatedMixture

CHUNK = 12_288  # this many observations are processed together, so that their weights stay in cache


@dataclass(frozen=True, eq=False)
class Sums:
    """Results of one pass for every problem (a fit of one replicate from one start).

    | field            | meaning                                        |
    |------------------|------------------------------------------------|
    | `log_likelihood` | L(theta)                                       |
    | `score`          | dL                                             |
    | `observed`       | observed information -d2L                      |
    | `complete`       | complete information                           |
    | `mass`           | sum_i r_ij, observations that expert j explains |
    """

    log_likelihood: Float64[Tensor, "problems"]
    score: Float64[Tensor, "problems p"]
    observed: Float64[Tensor, "problems p p"]
    complete: Float64[Tensor, "problems p p"]
    mass: Float64[Tensor, "problems experts"]

    def of(self, problems: Tensor) -> Sums:
        """The sums of the given problems."""
        return Sums(*(getattr(self, f.name)[problems] for f in fields(self)))

    def put(self, problems: Tensor, sums: Sums) -> None:
        """Replace the sums of the given problems."""
        for f in fields(self):
            getattr(self, f.name)[problems] = getattr(sums, f.name)

    def finite(self) -> Bool[Tensor, "problems"]:
        """True where likelihood, score and observed information are finite."""
        return self.log_likelihood.isfinite() & self.score.isfinite().all(1) & self.observed.isfinite().all((1, 2))


class Observations:
    """Samples of several replicates, and what does not depend on parameters: monomials of (1, x) and log f_0."""

    def __init__(self, model: GatedMixture, x: Float64[Tensor, "replicates n dim"], y: Tensor) -> None:
        self.model, self.y = model, y.mT.contiguous()
        design = torch.cat([torch.ones_like(x[..., :1]), x], 2).mT
        first, second = torch.triu_indices(model.dim + 1, model.dim + 1)
        self.monomials = design[:, first] * design[:, second]  # the first d + 1 monomials are (1, x)
        self.log_frozen = None if model.frozen is None else model.frozen.log_density(x, y).mT.contiguous()

    @property
    def n(self) -> int:
        return self.y.shape[2]

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.model)

    def sums(self, theta: Float64[Tensor, "problems p"], replicates: Tensor) -> Sums:
        """For every problem k, the sums at theta[k] over the sample of replicate replicates[k]."""
        together = max(1, CHUNK // self.n)
        parts = [
            self._block(theta[first : first + together], replicates[first : first + together])
            for first in range(0, len(theta), together)
        ]
        log_likelihood, rows = (torch.cat(part) for part in zip(*parts, strict=True))
        return self.layout.assemble(log_likelihood, rows)

    def responsibilities(self, theta: Float64[Tensor, "problems p"], replicates: Tensor) -> tuple[Tensor, Tensor]:
        """Responsibilities r_ij (problems, components, n), and monomials (problems, q, n) of the samples."""
        monomials = self.monomials[replicates]
        frozen = None if self.log_frozen is None else self.log_frozen[replicates]
        design = monomials[:, : self.model.dim + 1]
        return Pass(self.model, theta).posterior(design, self.y[replicates], frozen)[0], monomials

    def _block(self, theta: Tensor, replicates: Tensor) -> tuple[Tensor, Tensor]:
        pass_ = Pass(self.model, theta)
        first = int(replicates[0])
        consecutive = replicates.equal(torch.arange(first, first + len(replicates)))
        index = slice(first, first + len(replicates)) if consecutive else replicates  # a slice copies nothing
        starts = range(0, self.n, CHUNK)
        parts = [self._chunk(pass_, index, slice(start, start + CHUNK)) for start in starts]
        likelihood, rows = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        return likelihood, rows

    def _chunk(self, pass_: Pass, index: Tensor | slice, some: slice) -> tuple[Tensor, Tensor]:
        frozen = None if self.log_frozen is None else self.log_frozen[index, :, some]
        monomials = self.monomials[index, :, some]
        value, weights = pass_(monomials[:, : self.model.dim + 1], self.y[index, :, some], frozen)
        return value, weights @ monomials.mT


class Pass:
    """Weights of a chunk of observations at fixed parameters, in the order that :class:`Layout` reads them."""

    def __init__(self, model: GatedMixture, theta: Tensor) -> None:
        self.model = model
        self.gates, self.means, self.log_sd = model.coefficients(theta)
        self.precision = (-self.log_sd).exp()[..., None]

    def posterior(self, design: Tensor, y: Tensor, log_frozen: Tensor | None) -> tuple[Tensor, ...]:
        """r and pi (B, C, n), log p(y | x) (B, n), and the experts' m_j, means h(m_j) and scaled residuals."""
        linear = self.means @ design
        h = self.model.link(linear)
        e = (y - h).mul_(self.precision)
        log_p = e.square().mul_(-0.5).sub_(self.log_sd[..., None] + HALF_LOG_2PI)
        if log_frozen is not None:
            log_p = torch.cat([log_p, log_frozen], 1)
        scores = self.gates @ design
        pi, log_norm = _softmax(torch.cat([scores, torch.zeros_like(y)], 1))
        log_p[:, : self.model.num_gates].add_(scores)
        r, log_sum = _softmax(log_p)
        return r, pi, log_sum - log_norm, linear, h, e

    def __call__(self, design: Tensor, y: Tensor, log_frozen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-likelihood (B,) of the chunk and weights (B, rows, n)."""
        k, j = self.model.num_experts, self.model.num_gates
        r, pi, log_density, linear, h, e = self.posterior(design, y, log_frozen)
        r, pi = r[:, :k], pi[:, :j]
        slope, curvature = self._link(linear, h, e)
        a, c = e * slope, e.square().sub_(1)
        ra, rc = r * a, r * c
        predictors = torch.cat([r[:, :j], ra, rc], 1)
        products = [predictors[:, i : i + 1] * predictors[:, i:] for i in range(predictors.shape[1])]
        gates = [pi[:, i : i + 1] * pi[:, i:] for i in range(j)]
        fisher = r * slope.square()
        own = [ra * a + r * curvature, ra * (c - 2), rc * (c - 2) - 2 * r, fisher]
        return log_density.sum(1), torch.cat([*products, *gates, pi, r, ra, rc, *own], 1)

    def _link(self, linear: Tensor, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """d(h / sd) / dm and d2 log p / dm2."""
        if self.model.link.linear:
            return self.precision, -self.precision.square()
        slope = self.model.link.derivative(linear, h)
        bend = self.model.link.second(linear, h)
        return slope * self.precision, e * bend * self.precision - (slope * self.precision).square()


def _softmax(t: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over components, and the logarithm of its denominator (B, n)."""
    top = t.amax(1, keepdim=True)
    weights = (t - top).exp_()
    total = weights.sum(1, keepdim=True)
    return weights / total, (total.log() + top)[:, 0]


class Layout:
    """The places of a pass's rows in the score and in the information."""

    def __init__(self, model: GatedMixture) -> None:
        self.k, self.j = model.num_experts, model.num_gates
        self.size = self.j + 2 * self.k  # predictors: scores, means, log sds
        first = {"gate": 0, "mean": self.j, "log_sd": self.j + self.k}
        self.predictor = torch.tensor([first[what] + j for what, j, _ in model.places])
        self.column = torch.tensor([column for _, _, column in model.places])
        self.monomial = pair_index(model.dim + 1)[self.column[:, None], self.column]

    def assemble(self, log_likelihood: Tensor, rows: Tensor) -> Sums:
        """Score and information matrices, from sums over observations (B, rows, q)."""
        k, j, p = self.k, self.j, self.size
        sizes = [p * (p + 1) // 2, j * (j + 1) // 2, j, k, k, k, k, k, k, k]
        products, gates, pi, r, ra, rc, mm, mv, vv, fisher = rows.split(sizes, 1)
        observed, complete = products[:, pair_index(p)].clone(), rows.new_zeros(len(rows), p, p, rows.shape[2])
        s, m, v = torch.arange(p).split([j, k, k])
        if j:
            covariance = -gates[:, pair_index(j)]
            covariance[:, s, s] += pi
            complete[:, :j, :j] = covariance
            observed[:, :j, :j] += covariance
            observed[:, s, s] -= r[:, :j]
            for place, sums in ((m[:j], ra), (v[:j], rc)):
                observed[:, s, place] -= sums[:, :j]
                observed[:, place, s] -= sums[:, :j]
        for left, right, sums in ((m, m, mm), (m, v, mv), (v, m, mv), (v, v, vv)):
            observed[:, left, right] -= sums
        complete[:, m, m], complete[:, v, v] = fisher, 2 * r
        score = torch.cat([r[:, :j] - pi, ra, rc], 1)[:, self.predictor, self.column]
        pairs = (slice(None), self.predictor[:, None], self.predictor, self.monomial)
        return Sums(log_likelihood, score, observed[pairs], complete[pairs], r[..., 0])


def pair_index(size: int) -> Int64[Tensor, "size size"]:
    """Index (size, size) of the pair (i, j) in the upper triangle listed row by row; (j, i) has the same index."""
    index = torch.zeros(size, size, dtype=torch.int64)
    first, second = torch.triu_indices(size, size)
    index[first, second] = index[second, first] = torch.arange(len(first))
    return index
