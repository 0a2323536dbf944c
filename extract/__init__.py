"""Runs every image of a folder through a network once and keeps the bottlenecks in a cache."""
