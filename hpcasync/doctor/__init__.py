"""`hpcasync doctor`: what this machine, its MPI and its cluster are like for hpcasync, and what to do about it."""
