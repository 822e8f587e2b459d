"""One training: recipe, steps, evaluation, logs, and the state that a killed run goes on from."""
