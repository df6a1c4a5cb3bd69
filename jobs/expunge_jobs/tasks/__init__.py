"""Steps as data: tasks, their inputs and their settings."""
