"""``hpcasync sweep``: a search for the best options of a job, by any number of workers side by side."""
