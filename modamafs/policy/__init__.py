"""What a caller may do: pure functions of what is known, without any I/O."""
