"""Score and value of each prompt expert with two derivatives, in closed form: one file an expert."""
