"""The benchmark of over-specified fits: where the peer is told to stop, and that both sides solve one problem."""

import numpy as np
import pytest
import torch

from experiments.benchmarks.over_specified import (
    FACTOR,
    PROMPTS,
    TOLERANCE,
    Cell,
    Peer,
    judge,
    population,
    scout,
    tasks,
)
from moe_prompt.estimation.normal_equations import Problem

CELL = Cell("vpt", 307, 2, 1)


@pytest.fixture(scope="module")
def stages():
    return tasks(population(CELL.truth), CELL)


@pytest.mark.parametrize("truth", ["vpt", "vapt"])
def test_there_is_one_atom_too_many_and_one_start_a_replicate(truth):
    found = tasks(population(truth), Cell(truth, 307, 2, 1))
    for task in found.values():
        assert task.model.num_atoms == PROMPTS + 1 and task.starts.shape == (2, 1, task.model.num_parameters)
    measure = found["whole"].model.measure(found["whole"].starts[:, 0])
    own = next(iter(measure.atoms.values())).flatten(2)
    assert bool((own[:, 0] != own[:, 1]).all())  # the halves are apart


def test_the_peer_ends_where_ours_does(stages):
    task = stages["polish"]
    fit = task.ours()
    for run, objective in zip(scout(task, "lm"), fit.objective.tolist(), strict=True):
        assert run.reached and run.objective == pytest.approx(objective, rel=1e-9)
        peer = Peer(task.model, task.data, 0)
        assert len(peer.run("lm", task.starts[0, 0], 5)) == 5 < run.iterates < 500


def test_the_peer_stops_at_the_first_iterate_near_enough(stages):
    """Along the line to the minimum the distance in standard errors is known: it shrinks with the step that is left."""
    task = stages["polish"]
    best = task.ours().theta[0]
    problem = Problem.of(task.model, task.data, 1)
    gram = problem.gram(best[None], torch.tensor([0]))[0]
    spread = torch.from_numpy(np.random.default_rng(0).standard_normal(len(best)))
    unit = 1.0 / gram.diagonal()[:-1].sqrt() * (2 * gram[-1, -1] / 2 / problem.observations).sqrt()
    peer = Peer(task.model, task.data, 0)
    peer.evaluations = 7
    sizes = [1.0, 1e-2, 1e2 * FACTOR * TOLERANCE, 0.05 * FACTOR * TOLERANCE, 0.0]
    peer.seen = [(best + size * spread * unit).numpy() for size in sizes]
    run = judge(task.model, task.data, 0, peer)
    assert (run.iterates, run.reached, run.evaluations) == (4, True, 7)
    peer.seen = peer.seen[:2]
    run = judge(task.model, task.data, 0, peer)
    assert not run.reached and run.iterates == 2
