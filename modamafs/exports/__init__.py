"""What servers that hand a mount on are told: a module for each kind, and real ones to try out."""
