"""Figures; nothing else in the package imports matplotlib or seaborn."""
