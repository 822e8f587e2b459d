"""A training's random numbers are its own."""

import torch

from moe_prompt.vision.runtime.randomness import own_randomness, random_state, set_random_state

CPU = torch.device("cpu")


def drawn(seed: int, rank: int) -> list[float]:
    with own_randomness(seed, rank, CPU):
        return torch.rand(3).tolist()


def test_draws_are_of_seed_and_rank():
    assert drawn(1, 0) == drawn(1, 0)
    assert len({tuple(drawn(seed, rank)) for seed in (1, 2) for rank in (0, 1)}) == 4


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    drawn(1, 0)
    assert torch.equal(torch.rand(2), expected)


def test_draws_go_on_from_a_state():
    with own_randomness(1, 0, CPU):
        torch.rand(5)
        state = random_state(CPU)
        following = torch.rand(4)
        torch.rand(7)
        set_random_state(state, CPU)
        assert torch.equal(torch.rand(4), following)
