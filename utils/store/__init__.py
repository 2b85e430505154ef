"""Files between phases: rows, JSON lines, lookups by key, journals of finished work, manifests."""
