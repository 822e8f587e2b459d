"""The kinds of studies: what a cell is, how it is fitted, and what it tends to."""
