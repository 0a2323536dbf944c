"""Training of a softmax layer on cached bottlenecks, and what becomes of it: `python -m train`."""
