"""One training: recipe, steps, evaluation, logs, and the saved state from which a killed training continues."""
