"""The package, and the simulator, beside OAuth servers that others wrote."""
