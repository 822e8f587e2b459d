"""What can be learned and how fast: rank, Cramer-Rao bound, sigma_2, the law of splits, bad sequences."""
