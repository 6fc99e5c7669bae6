"""What a seal promises, attacked: every door, by everybody, in every way."""
