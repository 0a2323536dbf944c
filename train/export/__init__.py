"""The classifier in the forms that other programs load, and the report."""
