"""The scheduling problems: batched simulators behind one contract (`envs.team`)."""
