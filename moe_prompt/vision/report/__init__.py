"""Tables of what was measured, beside published numbers."""
