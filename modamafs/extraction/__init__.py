"""What instrument files say of themselves: read in the background, by a process in a sandbox."""
