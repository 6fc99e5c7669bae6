"""The process that runs hooks: commands of the configuration, when something has happened."""
