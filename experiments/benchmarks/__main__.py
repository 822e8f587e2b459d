"""`python -m experiments.benchmarks [NAME] [--quick]`: one JSON line per result; without a name, what there is."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module

from experiments.benchmarks.machine import Unavailable, limit_threads

BENCHMARKS = {
    "engine": "batched least squares against scipy.optimize.least_squares and the machine, 1 to 2 minutes",
    "over-specified": "Newton least squares with an atom too many against scipy.optimize.least_squares, 5 minutes",
    "vision": "a step of a prompted ViT-B/16 against prompts carried as tokens, 12 minutes",
    "em": "expectation-maximization against R's flexmix, 4 minutes; needs R",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m experiments.benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="which benchmark; none: list them")
    parser.add_argument("--quick", action="store_true", help="one round and fewer fits")
    chosen = parser.parse_args(arguments)
    if chosen.name is None:
        print("\n".join(f"{name}: {line}" for name, line in BENCHMARKS.items()))
        return 0
    if chosen.name not in BENCHMARKS:
        print(f"unknown benchmark {chosen.name!r}: choose one of {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    limit_threads()  # before torch and numpy are imported
    try:
        for result in import_module(f"experiments.benchmarks.{chosen.name.replace('-', '_')}").run(chosen.quick):
            print(json.dumps({"benchmark": chosen.name, **result}), flush=True)
    except Unavailable as reason:
        print(reason, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
