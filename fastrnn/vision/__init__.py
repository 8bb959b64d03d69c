"""Photographs to features: safe reading, networks, and what a data directory knows of them."""
