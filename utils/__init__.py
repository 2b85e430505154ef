"""The rooms behind the phase scripts: one module per idea, named by it."""
