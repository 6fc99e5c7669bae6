"""What the tests are made of: file systems on loop images, mounts, users, workloads."""
