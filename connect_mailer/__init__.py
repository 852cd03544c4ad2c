"""Outgoing mail of a Django site through Amazon SES: outbox, pacing, suppression, feedback."""

__version__ = "0.1.0"
