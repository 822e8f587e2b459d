"""Attention heads as mixtures of experts: prompt experts, gates, heads, and one row of a head."""
