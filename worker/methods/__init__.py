"""The methods in pure torch: suppression and evidence, and the baselines."""
