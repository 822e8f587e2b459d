"""What every folder may use: text tables, a progress bar, files of the user, and what a run was made with."""
