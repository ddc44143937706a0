"""``hpcasync simulate``: a strategy on a problem with a known optimum, on any number of simulated ranks."""
