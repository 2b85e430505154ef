"""The report of an experiment: one HTML page that needs no network, no server and no trust in model output."""
