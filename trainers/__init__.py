"""Training, evaluation, sweeps and reports, on RLlib and Ray Tune."""
