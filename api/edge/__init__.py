"""Between the world and the routes: who calls, how much, in which form; errors, request ids, metrics."""
