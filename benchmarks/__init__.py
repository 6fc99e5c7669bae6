"""What `docs/design` promises, measured: every figure beside bare and the peers.

`python -m benchmarks` is the comparison, `python -m benchmarks.restart` the gaps when the worker
is killed, `python -m benchmarks.memory` what a known inode costs. README.md says what each row
measures and what it does not.
"""
