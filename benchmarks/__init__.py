"""Measurements of a running server. ``make bench`` runs them; each prints what it measured and on what."""
