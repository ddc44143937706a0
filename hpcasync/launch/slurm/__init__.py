"""`hpcasync submit`: from typed options and a site file to a batch script, and to sbatch."""
