"""Questions in, answers out: who waits and who runs, in which batch, in how much memory. It knows no jobs."""
