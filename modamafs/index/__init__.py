"""The index: an SQLite file that answers questions about a store, and can be made again from it."""
