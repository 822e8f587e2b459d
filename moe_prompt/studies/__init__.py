"""Error against sample size: kinds of studies, the named ones, how they run and what their rows say."""
