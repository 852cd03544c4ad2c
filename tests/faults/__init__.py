"""What must hold when something breaks: real processes, killed; real servers, stopped."""
