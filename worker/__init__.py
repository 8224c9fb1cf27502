"""The worker: networks, the method, and the jobs that use them. The only side that imports torch."""
