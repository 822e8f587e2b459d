"""One row of a head as a regression model, and where its data come from."""
