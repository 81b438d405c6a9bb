"""Core values to messages and back: the only translator, so that generated code stays at the
edges and the core stays free of it."""
