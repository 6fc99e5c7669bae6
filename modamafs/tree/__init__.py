"""The file system itself, without FUSE: nodes, handles, and what may be done with them."""
