import math

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.measures.mixing_measure import MixingMeasure, require_same_parameters, voronoi_cells


def draw(rng: np.random.Generator, batch: tuple[int, ...], atoms: int) -> MixingMeasure:
    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((*batch, *shape)))

    return MixingMeasure(normal(atoms), {"z": normal(atoms, 2), "a": normal(atoms, 3, 5)}, {"w": normal(7, 2)})


def test_vectors_are_joined_in_name_order():
    measure = draw(np.random.default_rng(0), (11,), 3)
    vectors, shared = measure.atom_vectors(), measure.shared_vector()
    assert vectors.shape == (11, 3, 17) and shared.shape == (11, 14)
    for n in range(11):
        for j in range(3):
            expected = [*measure.atoms["a"][n, j].flatten().tolist(), *measure.atoms["z"][n, j].tolist()]
            assert vectors[n, j].tolist() == expected
        assert shared[n].tolist() == measure.shared["w"][n].flatten().tolist()


def test_scalar_atoms_and_no_shared_parameters():
    measure = MixingMeasure(torch.zeros(5, 3), {"tau": torch.ones(5, 3)})
    assert measure.atom_vectors().shape == (5, 3, 1) and measure.shared_vector().shape == (5, 0)


def test_weights_are_exponentials_and_minus_infinity_is_no_mass():
    measure = MixingMeasure(torch.tensor([0.5, -math.inf], dtype=torch.float64), {"p": torch.zeros(2, 3)})
    assert measure.weights.tolist() == [math.exp(0.5), 0.0]


def test_select_flatten_expand_move_only_batch_axes():
    measure = draw(np.random.default_rng(1), (2, 5), 3)
    assert measure.select((1, 4)).atoms["a"].equal(measure.atoms["a"][1, 4])
    assert measure.select((1, 4)).batch_shape == ()
    flat = measure.flatten_batch()
    assert flat.batch_shape == (10,) and flat.shared["w"][9].equal(measure.shared["w"][1, 4])
    one = measure.select((0, 1))
    assert one.flatten_batch().batch_shape == (1,)
    assert one.expand((11,)).atoms["z"][7].equal(one.atoms["z"])


def test_take_atoms_permutes_weights_and_parameters_together():
    measure = draw(np.random.default_rng(2), (2,), 3)
    index = torch.tensor([[2, 0, 1], [1, 1, 0]])
    taken = measure.take_atoms(index)
    for n in range(2):
        for i in range(3):
            source = int(index[n, i])
            assert taken.log_weights[n, i] == measure.log_weights[n, source]
            assert taken.atoms["a"][n, i].equal(measure.atoms["a"][n, source])
    assert taken.shared["w"].equal(measure.shared["w"])


def test_cells_are_nearest_atoms_by_plain_loops():
    rng = np.random.default_rng(3)
    estimated, true = draw(rng, (13,), 5), draw(rng, (13,), 3)
    cells = voronoi_cells(estimated, true)
    for n in range(13):
        theta, theta_star = estimated.atom_vectors()[n].numpy(), true.atom_vectors()[n].numpy()
        for i in range(5):
            distances = [sum((a - b) ** 2 for a, b in zip(theta[i], star, strict=True)) for star in theta_star]
            assert int(cells[n, i]) == distances.index(min(distances))
    assert len(set(cells.flatten().tolist())) == 3


def test_ties_go_to_the_lowest_index():
    estimated = MixingMeasure(torch.zeros(2), {"p": torch.tensor([[0.0, 0.0], [3.0, 0.0]])})
    corners = torch.tensor([[9.0, 9.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert voronoi_cells(estimated, MixingMeasure(torch.zeros(5), {"p": corners})).tolist() == [1, 1]


def test_a_failed_fit_has_some_cell():
    estimated = MixingMeasure(torch.zeros(2), {"p": torch.tensor([[math.nan], [1.0]])})
    true = MixingMeasure(torch.zeros(2), {"p": torch.tensor([[0.0], [1.0]])})
    assert voronoi_cells(estimated, true).tolist() == [0, 1]


def test_misfit_shapes_are_named():
    with pytest.raises(InputError, match="'p' needs leading axes"):
        MixingMeasure(torch.zeros(2, 3), {"p": torch.zeros(3, 3)})
    with pytest.raises(InputError, match="at least one atom"):
        MixingMeasure(torch.zeros(0), {"p": torch.zeros(0, 3)})
    one, other = (
        MixingMeasure(torch.zeros(2), {"p": torch.zeros(2, 3)}),
        MixingMeasure(torch.zeros(2), {"p": torch.zeros(2, 5)}),
    )
    with pytest.raises(InputError, match="atom parameters"):
        require_same_parameters(one, other)
    with pytest.raises(InputError, match="no batch axes or those of the estimate"):
        require_same_parameters(one, one.expand((7,)))
