"""Searches against a planted objective: what they try, in which order, how they go on, and how ties are broken."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.runtime.locks import Busy
from moe_prompt.vision.tuning.recipes import SGD_GRID, Grid, Point
from moe_prompt.vision.tuning.searches import (
    FAILED_ACCURACY,
    SEARCHES,
    CoordinateSearch,
    DrawnSearch,
    GridSearch,
    best_point,
    search_named,
)
from moe_prompt.vision.tuning.tune import explore

GRID = Grid("planted", "sgd", (5.0, 1.0, 0.2), (0.01, 0.001), "ours", "small")


class Planted:
    """An objective that counts how often each point is evaluated, and may be interrupted."""

    def __init__(self, best=(1.0, 0.01), dies_after=None):
        self.best, self.dies_after, self.calls = Point(*best), dies_after, []

    def __call__(self, point, wait):
        if self.dies_after is not None and len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        self.calls.append(point)
        rates, decays = point.base_lr - self.best.base_lr, point.weight_decay - self.best.weight_decay
        return 90.0 - 10 * abs(rates) - 100 * abs(decays)


def test_grid_tries_every_point_once(tmp_path):
    objective = Planted()
    points = explore(GridSearch(GRID), objective, tmp_path / "s.sqlite", "study")
    assert sorted(objective.calls) == sorted(points) == sorted(GRID.points()) and len(points) == 6


def test_a_finished_search_evaluates_nothing(tmp_path):
    first = explore(GridSearch(GRID), Planted(), tmp_path / "s.sqlite", "study")
    objective = Planted()
    assert explore(GridSearch(GRID), objective, tmp_path / "s.sqlite", "study") == first
    assert objective.calls == []


@pytest.mark.parametrize("search", [GridSearch(GRID), CoordinateSearch(GRID), DrawnSearch(GRID, 7, "random")])
def test_an_interrupted_search_goes_on(tmp_path, search):
    """Killed three times: the same points as undisturbed; only what was in flight is evaluated again."""
    undisturbed = explore(search, Planted(), tmp_path / "whole.sqlite", "study")
    tried = []
    for dies_after in (2, 0, 1):
        objective = Planted(dies_after=dies_after)
        with pytest.raises(KeyboardInterrupt):
            explore(search, objective, tmp_path / "s.sqlite", "study")
        tried += objective.calls
    objective = Planted()
    points = explore(search, objective, tmp_path / "s.sqlite", "study")
    assert points == undisturbed
    assert Counter(tried + objective.calls) == Counter(undisturbed)


def test_coordinates_by_hand(tmp_path):
    """Learning rates at decay 0.001 first, then decays at the best of them: 3 + 2 - 1 trials."""
    objective = Planted(best=(0.2, 0.01))
    points = explore(CoordinateSearch(GRID), objective, tmp_path / "s.sqlite", "study")
    assert list(points) == [Point(5.0, 0.001), Point(1.0, 0.001), Point(0.2, 0.001), Point(0.2, 0.01)]
    assert CoordinateSearch(GRID).trials == len(points)


def test_coordinates_wait_for_every_learning_rate():
    search, told = CoordinateSearch(GRID), {Point(5.0, 0.001): 10.0, Point(1.0, 0.001): None, Point(0.2, 0.001): 30.0}
    assert search.next_point(told) is None
    assert search.next_point(told | {Point(1.0, 0.001): 50.0}) == Point(1.0, 0.01)
    assert search.next_point(told | {Point(1.0, 0.001): FAILED_ACCURACY}) == Point(0.2, 0.01)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_drawn_points_lie_in_the_range_and_differ(tmp_path, sampler):
    search = DrawnSearch(SGD_GRID, 13, sampler)
    points = explore(search, Planted(), tmp_path / "s.sqlite", "study")
    assert len(set(points)) == 13
    assert all(0.05 <= point.base_lr <= 50 and point.weight_decay in SGD_GRID.weight_decays for point in points)
    assert min(point.base_lr for point in points) < 1 < max(point.base_lr for point in points)


def test_tpe_learns_within_few_trials(tmp_path, monkeypatch):
    """Half of six are drawn at random, and the rest from what those gave; by Optuna's default all six would be."""
    import optuna

    made, plain = [], optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **options: made.append(options) or plain(**options))
    explore(DrawnSearch(SGD_GRID, 6, "tpe"), Planted(), tmp_path / "s.sqlite", "study")
    assert [options["n_startup_trials"] for options in made if options] == [3] * 6


def test_workers_share_a_search(tmp_path):
    """Three at once: every point is worked on by one of them; the first trial ends only when a second has begun."""
    taken, guard, together = {}, threading.Lock(), threading.Event()

    def evaluate(point, wait):
        with guard:
            mine = taken.setdefault(point, threading.get_ident()) == threading.get_ident()
            if len(set(taken.values())) > 1:
                together.set()
        if not mine and not wait:
            raise Busy(point)
        assert together.wait(30)
        return 50.0 + point.base_lr

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(explore, GridSearch(GRID), evaluate, tmp_path / "s.sqlite", "study") for _ in range(3)]
        found = [job.result(timeout=60) for job in jobs]
    assert all(sorted(points) == sorted(GRID.points()) for points in found)
    assert len(set(taken.values())) > 1


def test_ties_go_to_the_milder_training():
    tied = [Point(5.0, 0.01), Point(1.0, 0.0), Point(1.0, 0.001)]
    assert best_point([(point, 80.0) for point in tied]) == Point(1.0, 0.001)
    assert best_point([(Point(5.0, 0.0), 80.5), (Point(1.0, 0.0), 80.0)]) == Point(5.0, 0.0)


@pytest.mark.parametrize("name", ["small", "random", "tpe"])
def test_every_method_gets_as_many_trials(name):
    assert search_named(name, "sgd").trials == search_named(name, "adamw").trials == 6
    assert search_named(name, "adamw").optimizer == "adamw"


def test_names_and_numbers_of_trials():
    assert {name: search_named(name, "adamw").trials for name in SEARCHES}["paper"] == 16
    assert search_named("tpe", "sgd", 11).trials == 11
    with pytest.raises(InputError, match="has 6 trials of its own"):
        search_named("small", "sgd", 11)
    with pytest.raises(InputError, match="unknown search"):
        search_named("bayes")
    with pytest.raises(InputError, match="starts at a weight decay of its grid"):
        CoordinateSearch(GRID, first_decay=0.5)


def test_a_study_that_is_no_database_is_named(tmp_path):
    (tmp_path / "s.sqlite").write_text("no database " * 100)
    with pytest.raises(InputError, match=r"s\.sqlite"):
        explore(GridSearch(GRID), Planted(), tmp_path / "s.sqlite", "study")
