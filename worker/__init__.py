"""The worker: networks, methods, the engine and jobs. Only this package imports torch."""
