"""The engine: it answers questions on a device, in batches, within its memory. It knows no jobs."""
