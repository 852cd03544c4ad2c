"""Outgoing mail of a Django site through Amazon SES: outbox, pacing, suppression, feedback."""

__version__ = "1.0.0"
