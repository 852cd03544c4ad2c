"""Connect's users."""
