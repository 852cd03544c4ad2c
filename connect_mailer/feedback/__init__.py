"""What SES says of mail that was sent, from SNS to ``Unsubscribe`` and the outbox."""
