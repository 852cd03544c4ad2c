"""Sites that move over from other mail apps, by the commands of ``docs/moving.rst``."""
