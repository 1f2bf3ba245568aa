"""Every report is a function of the verdict and of nothing else."""
