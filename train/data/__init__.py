"""What training reads: which photos are in which part, and their bottlenecks in batches."""
