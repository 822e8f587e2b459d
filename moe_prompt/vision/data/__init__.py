"""Pictures and labels: tasks, their splits, and batches of them."""
