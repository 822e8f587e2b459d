"""Studies at full size and benchmarks: what to run, at what cost, with what result. Only the public API is used."""
