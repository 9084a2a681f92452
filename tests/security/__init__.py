"""Every line of the project's list of attacks, as a test; the numbers are in the docstrings."""
