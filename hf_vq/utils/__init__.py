"""Helpers that know nothing of models: files, hashes, text, processes, progress."""
