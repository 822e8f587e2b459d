"""From rows to findings: slopes, summaries, plans and pages."""
