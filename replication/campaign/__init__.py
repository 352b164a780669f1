"""Many runs: the pipeline, its workers, sweeps, tuning and trials."""
