"""Sealing, proving and opening directory trees on the store."""
