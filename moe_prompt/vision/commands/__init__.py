"""The commands of `moe-prompt classify`."""
