from django.core.mail import send_mail
from django_ses.models import BlacklistedEmail, SESStat

assert send_mail("Before", "Text", None, ["old@example.org"]) == 1
BlacklistedEmail.objects.create(email="Bounced@example.org")
BlacklistedEmail.objects.create(email="bounced@Example.org")
BlacklistedEmail.objects.create(email="gone@example.org")
SESStat.objects.create(date="2026-01-01", delivery_attempts=9, bounces=1, complaints=0, rejects=0)
