"""The sibling model in which Y | X picks one expert: densities, expectation maximisation, bounds."""
