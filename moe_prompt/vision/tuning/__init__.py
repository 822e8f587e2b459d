"""A search over recipes on validation pictures, then seeds on the test pictures; the rows of all runs."""
