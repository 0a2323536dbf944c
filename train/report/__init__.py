"""How good the classifier is, and the pages, numbers and curves that show it."""
