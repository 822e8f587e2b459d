"""The named studies, one file a claim."""
