"""How fast this site may send: what the settings say, capped by what SES says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from connect_mailer.conf import conf
from connect_mailer.exceptions import DeliveryError, SenderDenied
from connect_mailer.sending.ses import Account, SESClient

logger = logging.getLogger(__name__)

# For how long an answer of GetAccount is used, and how soon a failed question is asked again.
# GetAccount itself is limited to one call a second for the whole account.
REFRESH_SECONDS = 300.0
RETRY_SECONDS = 10.0

# The rate of an account in the SES sandbox: what is safe while SES can't be asked.
UNKNOWN_RATE = 1.0


class AccountRate:
    """Recipients per second, with the account's answer kept for a while in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._client: SESClient | None = None
        self._account: Account | None = None
        self._ask_again_at = 0.0

    def get(self, client: SESClient | None) -> float | None:
        """The rate for SES through ``client``, or for another transport (``None``).

        ``None``: not paced, which is so for other transports unless the settings name a number.
        """
        configured = conf.rate
        number = None if configured == "auto" else configured
        if client is None:
            return number
        allowed = self._ask(client)
        if allowed is None:
            return number or UNKNOWN_RATE
        return min(number, allowed) if number else allowed

    def _ask(self, client: SESClient) -> float | None:
        if client is not self._client:
            self._client, self._account, self._ask_again_at = client, None, 0.0
        now = self._clock()
        if now >= self._ask_again_at:
            self._ask_again_at = now + REFRESH_SECONDS
            try:
                self._account = client.get_account()
            except SenderDenied as error:
                logger.warning(
                    "SES doesn't tell this site its sending rate (%s). Allow ses:GetAccount, "
                    'or set CONNECT_MAILER["RATE"]; until then it sends %s recipients/s.',
                    error,
                    UNKNOWN_RATE if conf.rate == "auto" else conf.rate,
                )
            except DeliveryError as error:
                # The last answer holds. What is wrong with the account, sending will show.
                self._ask_again_at = now + RETRY_SECONDS
                logger.warning("SES could not be asked for the sending rate: %s", error)
        rate = self._account.max_send_rate if self._account else 0.0
        return rate if rate > 0 else None


account_rate = AccountRate()
