"""The life cycle of a slice: claimed, answered by the engine, committed or released. It knows jobs, not tensors."""
