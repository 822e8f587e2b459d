r"""M-steps of latent mixtures: weighted least squares for experts, weighted multinomial regression for the gate.

Given responsibilities r_ij, the M-step maximises a sum of two parts that have no common parameters,

    sum_ij r_ij log pi_j(x_i)    and    sum_ij r_ij log N(y_i; h(m_j(x_i)), sd_j^2),

The first part is concave. The second has a maximum in closed form if h is linear.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from moe_prompt.likelihood.louis_information import Sums, pair_index
from moe_prompt.likelihood.models import GatedMixture

FLAT = 1e-9  # information below this share of the complete information (or of one observation) counts as zero


def scoring_step(model: GatedMixture, sums: Sums, free: Bool[Tensor, "problems p"]) -> Float64[Tensor, "problems p"]:
    """One M-step (problems, p): C^-1 g on the free parameters, and the best standard deviations given the new means.

    C is the complete information and g the score. For the experts this is the M-step itself if h is linear; for the
    gate it is one Newton step towards it.
    """
    step = positive_solve(sums.complete, sums.complete, 1e-12, sums.score, free)
    what = torch.tensor([j if kind == "mean" else -1 for kind, j, _ in model.places])
    gains, last = step * sums.score, model.slices["log_sd"]
    explained = torch.stack([(gains * (what == j)).sum(1) for j in range(model.num_experts)], 1)
    mean_square = 1 + (sums.score[:, last] - explained) / sums.mass.clamp(min=FLAT)
    step[:, last] = 0.5 * mean_square.clamp(0.01, 100.0).log() * free[:, last]
    return step.nan_to_num(nan=0.0)


def gate_maximum(
    gates: Float64[Tensor, "problems free width"],
    responsibilities: Float64[Tensor, "problems components n"],
    monomials: Float64[Tensor, "problems q n"],
    steps: int = 50,
    tolerance: float = 1e-6,
) -> Float64[Tensor, "problems free width"]:
    """Gate coefficients that maximise sum_ij r_ij log pi_j(x_i), by Newton's method; steps that overshoot are halved.

    `monomials` are the upper triangle of (1, x)(1, x)', with (1, x) first. The iteration ends when the predicted gain
    of the next step is at most `tolerance`, or after `steps` steps.
    """
    design = monomials[:, : gates.shape[2]]
    value, step, halvings = gates.new_full((len(gates),), -torch.inf), torch.zeros_like(gates), 0
    for _ in range(steps):
        scores = torch.cat([(gates + step) @ design, torch.zeros_like(design[:, :1])], 1)
        log_pi = scores.log_softmax(1)
        found = (responsibilities * log_pi).sum((1, 2))
        worse = found < value - 1e-12 * value.abs()
        if bool(worse.any()) and halvings < 30:
            step, halvings = torch.where(worse[:, None, None], 0.5 * step, step), halvings + 1
            continue
        gates, value, halvings = gates + step, found, 0
        score, information = _regression(log_pi.exp(), responsibilities, monomials, gates.shape[2])
        newton = positive_solve(information, information, 1e-12, score, torch.ones_like(score, dtype=torch.bool))
        step = newton.nan_to_num(nan=0.0).unflatten(1, gates.shape[1:])
        if bool(((newton * score).sum(1) <= tolerance).all()):
            break
    return gates


def _regression(pi: Tensor, responsibilities: Tensor, monomials: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Score (B, p) and information (B, p, p) of the multinomial regression; the last component has no gate."""
    pi = pi[:, :-1]
    score = ((responsibilities[:, :-1] - pi) @ monomials[:, :width].mT).flatten(1)
    weights = torch.diag_embed(pi.mT).permute(0, 2, 3, 1) - pi[:, :, None] * pi[:, None]
    sums = (weights.flatten(1, 2) @ monomials.mT).unflatten(1, weights.shape[1:3])[..., pair_index(width)]
    return score, sums.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def positive_solve(
    matrix: Float64[Tensor, "problems p p"],
    scale: Float64[Tensor, "problems p p"],
    ridge: float,
    score: Float64[Tensor, "problems p"],
    free: Bool[Tensor, "problems p"],
) -> Float64[Tensor, "problems p"]:
    """matrix^-1 g on the free parameters and 0 on the others; NaN if the matrix is not positive definite.

    The system is scaled by the diagonal of `scale`; `ridge` is added to the diagonal of the scaled matrix.
    """
    unit = scale.diagonal(dim1=1, dim2=2).clamp(min=FLAT).rsqrt() * free
    scaled = matrix * unit[:, :, None] * unit[:, None, :]
    scaled.diagonal(dim1=1, dim2=2).add_(ridge * free + (~free).to(scaled))
    factor, info = torch.linalg.cholesky_ex(scaled)
    step = torch.cholesky_solve((score * unit)[..., None], factor)[..., 0] * unit
    return torch.where((info > 0)[:, None], torch.nan, step)
