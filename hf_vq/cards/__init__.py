"""Model cards: what stands in a repository's README."""
