"""Break each rule of the webhook in turn, in a copy; some test must fail each time.

``python -m tests.feedback.mutants`` prints one line a rule and exits 1 if a broken rule went
unnoticed. ``python -m tests.feedback.mutants WORD [WORD ...]`` takes only those with a word.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import servers

ROOT = Path(__file__).resolve().parents[2]
FEEDBACK = Path("connect_mailer/feedback")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One rule broken: in ``file``, each old text of ``edits`` becomes the new one."""

    rule: str
    file: str
    edits: tuple[tuple[str, str], ...]

    def apply(self, text: str) -> str | None:
        """The file's text without the rule; ``None``: it does not say it."""
        for old, new in self.edits:
            if old not in text:
                return None
            text = text.replace(old, new, 1)
        return text


def make_mutants(file: str, *rules: tuple[str, ...]) -> list[Mutant]:
    """Those of one file, each as its rule, what says it and what breaks it.

    Where a rule is said twice, another such pair follows.
    """
    return [
        Mutant(rule=rule, file=file, edits=tuple(zip(texts[::2], texts[1::2], strict=True)))
        for rule, *texts in rules
    ]


MUTANTS = [
    *make_mutants(
        "endpoint.py",
        ("no CSRF token", "@csrf_exempt\n", ""),
        ("no login", "@login_not_required\n", ""),
    ),
    *make_mutants("../apps.py", ("connected", "    suppress(**kwargs)", "    del suppress")),
    *make_mutants(
        "webhook.py",
        ("POST only", 'request.method != "POST"', "False"),
        ("body limit", "len(body) > sns.MAX_BODY_BYTES", "False"),
        ("own limit", "request.read(sns.MAX_BODY_BYTES + 1)", "request.body"),
        ("request kept for receivers", "request._body = body", "pass"),
        ("topic checked", "sns.check_topic(notification, topic_arns)", "pass"),
        (
            "certificate address checked",
            "sns.check_certificate_url(notification, conf.cert_domain_regex)",
            "pass",
        ),
        ("old pattern narrows", "conf.cert_domain_regex)", "None)"),
        ("signature checked", "sns.verify(notification, key)", "pass"),
        ("topic logged once", "now - _topic_logged_at < _TOPIC_LOG_SECONDS", "False"),
        ("log lines", "return ascii(text[:100])", "return text"),
        ("refused is 400", "_answer(400,", "_answer(503,"),
        (
            "undecided is 503",
            'shall try again: %s", error)\n        return _answer(503, "Try again")',
            'shall try again: %s", error)\n        return _answer(400, "Refused")',
        ),
        (
            "whatever a receiver raises",
            "extra=_describe(notification)\n        )\n        return _answer",
            "extra=_describe(notification)\n        )\n        raise\n        return _answer",
        ),
        ("no other error is 500", "except Exception:", "except ZeroDivisionError:"),
        (
            "once, if not about mail",
            "records.make_receipt(notification, using=using, deadline=deadline)",
            "execute([('SELECT 1', [])], using, deadline=deadline)",
        ),
        (
            "once, if somebody listens",
            "else:\n                    records.make_receipt(notification, using=using, deadline=",
            "else:\n                    execute([('SELECT 1', [])], using, deadline=",
        ),
        (
            "taken only if there is a receipt",
            "if not records.is_taken(notification, using=using, deadline=deadline):",
            "if False:",
        ),
        ("listeners are told", "listening <= {receivers.DISPATCH_UID}", "True"),
        ("suppressed where nobody listens", "receivers.suppress_all(event)", "pass"),
        ("nobody is suppressed if disconnected", "if listening:", "if True:"),
        ("outbox settled", "settlement.settle(event, using=using)", "False"),
        ("written together", "with receivers.together(message):", "if True:"),
        ("signal of notifications", "signals.notification.send(", "str("),
        ("signal of feedback", "signals.feedback.send(", "str("),
        ("signal of subscriptions", "signals.subscription.send(", "str("),
        ("receivers' errors count", "signals.feedback.send(", "signals.feedback.send_robust("),
        ("subscribing is off", "if not conf.auto_subscribe:", "if False:"),
        ("subscribe pattern narrows", "not pattern.search(host)", "False"),
        ("ended subscriptions are loud", "logger.error(", "logger.debug("),
        (
            "an end is noted once",
            "make_receipt(notification, using=using, deadline=deadline)\n            _signal_not",
            "is_taken(notification, using=using, deadline=deadline)\n            _signal_not",
        ),
        (
            "confirmed once",
            "    if records.is_taken(notification, using=using, deadline=deadline):",
            "    if False:",
        ),
        ("an end is noted", "subscriptions.note_ended(", "dict("),
        (
            "a validation begins",
            "subscriptions.note_begun(notification.topic_arn, using=using)\n            logger",
            "pass\n            logger",
        ),
        (
            "a confirmation begins",
            "subscriptions.note_begun(notification.topic_arn, using=using)\n    return status",
            "pass\n    return status",
        ),
        ("a cache that hangs", "else sns.BriefCache(cache, deadline)", "else cache"),
        ("a confirmation gets what is left", ".left(sns.DOWNLOAD_SECONDS)", ".left()"),
        (
            "a certificate gets what is left",
            "        deadline=deadline,\n    )\n    sns.v",
            ")\n    sns.v",
        ),
        ("app installed", '"django_bouncy" not in apps.app_configs', "False"),
    ),
    *make_mutants(
        "sns.py",
        ("UTF-8", 'body.decode("utf-8")', 'body.decode("latin-1")'),
        ("object", "not isinstance(data, dict)", "False"),
        ("known type", "or kind not in SIGNED_FIELDS", ""),
        ("null subject is none", 'data.get("Subject", "") is None', "False"),
        ("duplicate keys", "len(data) != len(pairs)", "False"),
        ("NaN", 'raise ValueError(f"{name} is not JSON")', "return None"),
        ("deep nesting", "except RecursionError:", "except ZeroDivisionError:"),
        ("strings", "not isinstance(value, str) or ", ""),
        ("not empty", '(not value and name != "Subject")', "False"),
        ("half surrogates", "except UnicodeEncodeError:", "except ZeroDivisionError:"),
        ("control characters", "and _CONTROL.search(value)", "and False"),
        ("C1 and line separators", r"\x7f-\x9f\u2028\u2029", r"\x7f"),
        ("message may have newlines", '{"Message", "Subject", "Signature"}', '{"Signature"}'),
        ("message cut again", r'"\nMessageId\n" in f"\n{subject}"', "False"),
        ("version", 'data["SignatureVersion"] not in _HASHES', "False"),
        ("topic equals", "notification.topic_arn not in topic_arns", "not topic_arns"),
        (
            "topic is no substring",
            "notification.topic_arn not in topic_arns",
            'notification.topic_arn not in ",".join(topic_arns)',
        ),
        (
            "topic is an ARN",
            "if _TOPIC.fullmatch(notification.topic_arn) is None:",
            "if False:",
        ),
        ("China", '".cn" if match["partition"] == "aws-cn" else ""', '""'),
        ("host and scheme", "not url.startswith(prefix) or ", ""),
        ("full match", "_PEM_NAME.fullmatch(", "_PEM_NAME.match("),
        ("ASCII name", "[A-Za-z0-9]{1,128}", r"[^/]{1,128}"),
        ("pattern narrows", "not pattern.search(host)", "False"),
        (
            "order of fields",
            '"Message", "MessageId", "Subject"',
            '"Message", "Subject", "MessageId"',
        ),
        ("subject only if present", " if name in data\n    ).encode", "\n    ).encode"),
        ("strict base64", "base64.b64encode(signature).decode() != text", "False"),
        (
            "no base64 at all",
            'except ValueError:\n        raise NotificationRefused("the sig',
            'except ZeroDivisionError:\n        raise NotificationRefused("the sig',
        ),
        ("wrong signature", 'NotificationRefused("the signature is wrong")', "UserWarning()"),
        ("hash by version", '"2": hashes.SHA256()', '"2": hashes.SHA1()'),
        ("dates", "not certificate.starts <= now <= certificate.ends", "False"),
        ("begin date", "certificate.starts <= now <=", "now <="),
        ("names", 'not certificate.names & {"sns', 'False and {"sns'),
        ("one certificate", 'pem.count(b"-----BEGIN") != 1', "False"),
        ("key size", "or key.key_size < MIN_KEY_BITS", ""),
        ("RSA", "not isinstance(key, rsa.RSAPublicKey) or", ""),
        ("subscribe URL built", '"Token": notification.token', '"Token": "x"'),
        ("status 200", "response.status != http.HTTPStatus.OK", "False"),
        ("size", "len(body) > MAX_DOWNLOAD_BYTES or ", ""),
        ("all of it", " or response.length:", ":"),
        (
            "total time",
            "        self.hurry()\n        return super().recv",
            "        return super().recv",
        ),
        ("TLS", "ssl.create_default_context()", "ssl._create_unverified_context()"),
        ("cache asked", "for pem in (cached, ", "for pem in ("),
        ("memory", "self._known[url] = pem\n", "pass\n"),
        ("cached", "_tell(cache, url, pem)", "pass"),
        (
            "cached after it was examined",
            "        pem = self._wait(url, host, known, deadline or Deadline())\n",
            (
                "        pem = self._download(host, url[len(host) + 8 :])\n"
                "        _tell(cache, url, pem)\n"
            ),
        ),
        (
            "what is cached is examined",
            "key = read_certificate(pem, host=host, now=now)",
            "key = _load_certificate(pem).key",
        ),
        (
            "cache out of reach, read",
            "return cache.get(url)\n    except Exception:",
            "return cache.get(url)\n    except ZeroDivisionError:",
        ),
        (
            "cache out of reach, written",
            "timeout=CERTIFICATE_CACHE_SECONDS)\n    except Exception:",
            "timeout=CERTIFICATE_CACHE_SECONDS)\n    except ZeroDivisionError:",
        ),
        ("fresh for a while", "if until > self._clock():", "if until:"),
        ("fresh at all", "self._fresh[url] = pem, self._clock() + FRESH_SECONDS", "pass"),
        (
            "fresh is examined",
            "return read_certificate(pem,",
            "return _load_certificate(pem).key, (",
        ),
        ("fresh is bounded", "len(self._fresh) > MAX_CERTIFICATES", "False"),
        ("a cache is outlived", "for pem in (cached, known, kept):", "for pem in (cached, known):"),
        ("fresh is forgotten", "self._fresh.pop(url, None)", "pass"),
        (
            "a cache is waited for briefly",
            "answer.result(timeout=max(ends_at - time.monotonic(), 0.0))",
            "answer.result()",
        ),
        ("few wait", "not self._free.acquire(timeout=seconds)", "False"),
        ("a cache gets what is left", "self._deadline.left(CACHE_SECONDS)", "CACHE_SECONDS"),
        ("failures remembered", "self._failed[url] = self._clock() + FAILURE_SECONDS", "pass"),
        ("failures forgotten", "and until > self._clock()", ""),
        ("failures bounded", "len(self._failed) > MAX_FAILURES", "False"),
        ("one download a certificate", "running = self._running.get(url)", "running = None"),
        ("few downloads", " and len(self._running) < MAX_DOWNLOADS:", ":"),
        ("few downloads in time", "self._budget -= 1", "pass"),
        ("budget refills", "self._budget += (now", "str(now"),
        (
            "budget does not add up",
            "min(self._budget, float(DOWNLOAD_BUDGET))",
            "self._budget",
        ),
        ("asked for most often first", "reverse=True", "reverse=False"),
        ("asked for is counted", "self._asked[place] += 1", "pass"),
        ("tried once, counted from nothing", "self._asked[place] -= times", "pass"),
        ("an emptied cache is filled", "_tell(cache, url, known)", "pass"),
        (
            "waiting ends",
            "running.result(timeout=deadline.left(DOWNLOAD_SECONDS))",
            "running.result(timeout=60)",
        ),
    ),
    *make_mutants(
        "events.py",
        ("event publishing", ' or message.get("eventType")', ""),
        ("only who was written to", "if reported in known:", "if True:"),
        (
            "several: nobody",
            "next(iter(known)) if len(known) == 1 else None",
            "next(iter(known), None)",
        ),
        ("forwarded", "next(iter(known)) if len(known) == 1 else None", "None"),
        ("rfc822", 'address_type.strip().lower() == "rfc822"', "False"),
        ("NULs", '.replace("\\0", "")', ""),
        ("half surrogates stored", '.encode("utf-8", "replace").decode()', ""),
        (
            "times",
            "except (ValueError, OverflowError):\n        return None",
            "except ZeroDivisionError:\n        return None",
        ),
        ("integers", "max(0, min(number, _MAX_INTEGER))", "number"),
        ("not spam", "return _is_word(feedback_type, NOT_SPAM)", "return False"),
        ("delayed", "return _is_word(action, DELAYED)", "return False"),
        ("spelling", "value.strip().lower() == word", "value == word"),
        ("cut words", "len(value) < _MAX_WORD and ", ""),
        (
            "no text is somebody",
            'text if isinstance(text, str) else "" for text in listed',
            "text for text in listed if isinstance(text, str)",
        ),
        ("tag", "return uuid.UUID(value)", "return None"),
        (
            "bad recipients left out",
            "            continue\n        yield",
            "            return\n        yield",
        ),
        ("destination as a text", 'or read_text(text) or ""', "or text"),
        (
            "destination normalised",
            "read_address(text) or read_text(text) or",
            "read_text(text) or",
        ),
    ),
    *make_mutants(
        "receivers.py",
        ("not spam is no opt-out", "None if events.is_not_spam(feedback_type) else ", ""),
        ("hard only", "kind != events.PERMANENT or ", ""),
        ("delayed is no opt-out", " or events.is_delayed(action)", ""),
        ("unsubscribed is an opt-out", "subtype == events.UNSUBSCRIBED", "False"),
        ("of the mail's list", "mailing_list = find_mailing_list()", 'mailing_list = ""'),
        ("by the tag first", "Q(uuid=tag) if tag else None", "None"),
        (
            "own row tells",
            '.values_list("address", flat=True)\n    )',
            '.values_list("address", flat=True)[:0]\n    )',
        ),
        ("newer opt-outs stay", "mailing_list, before=happened_at)", "mailing_list)"),
        (
            "opt-outs together",
            "Unsubscribe.objects.opt_out_all(opt_outs, mailing_list)",
            "[a for a, w in opt_outs.items() if Unsubscribe.objects.opt_out(a, mailing_list)]",
        ),
        ("says why", "wanted[address, source] = detail", 'wanted[address, source] = ""'),
    ),
    *make_mutants(
        "../addresses.py",
        ("encoded words stay as they are", 'if "=?" in value:', "if False:"),
        ("other dots stay out", "if _OTHER_DOTS.search(domain):", "if False:"),
    ),
    *make_mutants(
        "../models.py",
        ("opt-outs repeated stay", ".update(modified_at=timezone.now())", ".exists()"),
        ("users by their address", "lower_email=Lower(field)", "lower_email=models.F(field)"),
    ),
    *make_mutants(
        "subscriptions.py",
        ("begun again", "filter(name=_make_name(topic_arn)).delete()", "none()"),
        ("of that topic", "topic == topic_arn and ", ""),
        ("later", " and created_at > since", ""),
    ),
    *make_mutants(
        "deadline.py",
        ("no more than is left", "min(at_most, self._ends_at - self._clock())", "at_most"),
        ("no more than is asked for", "min(at_most, self._ends_at", "max(0, self._ends_at"),
        ("an end", "if seconds <= 0:", "if False:"),
    ),
    *make_mutants(
        "brief.py",
        ("one transaction", "with transaction.atomic(using=using):", "if True:"),
        ("what is lost is taken away", "undo = _limit(connection, deadline) or undo", "pass"),
        ("each statement in time", "with connection.execute_wrapper(watch):", "if True:"),
    ),
    *make_mutants(
        "records.py",
        (
            "once, if nobody listens",
            "return [insert_receipt(notification, connection), *([rows] if rows else [])]",
            "return [rows] if rows else [('SELECT 1', [])]",
        ),
        ("rows if nobody listens", "*([rows] if rows else [])]", "]"),
        ("user linked", "prepare(users.get(address), connection)", "None"),
        ("for good", '("detail", "expires_at", "modified_at"), unique', '("detail",), unique'),
        ("not too many at once", "len(event.recipients) <= MAX_RECIPIENTS and (", "("),
        ("long ids", "key if len(key) <= 100 else ", "key if True else "),
        ("values cut", "value[: longest[name]] if isinstance(value, str) else value", "value"),
        ("ids of rows", "if rows[0].pk is None:", "if False:"),
        ("hard", '"hard": event.type == events.PERMANENT', '"hard": True'),
        ("no time zone", "time if time is None or settings.USE_TZ else", "time if True else"),
    ),
    *make_mutants(
        "settlement.py",
        ("never downgrade", "and _RANKS[one.status] < _RANKS[status]", ""),
        ("suppressed stays", "if owner == pk and status in _RANKS", "if owner == pk"),
        ("found by tag", 'names["uuid"] = field', "_ = field"),
        ("found by id", 'names["ses_message_id"] = event.ses_message_id', "pass"),
        ("the tag names the row", '(str(row[1]).replace("-", "") != tag, row[0])', "row[0]"),
        (
            "no id is not the same id",
            "    if event.ses_message_id:\n",
            "    if True:\n",
            " AND NOT (m.{column} = '')",
            "",
        ),
        (
            "id kept",
            "message.ses_message_id = message.ses_message_id or",
            "message.ses_message_id =",
        ),
        ("doubt ends", "message.in_doubt = False", "pass"),
        ("claim ends", "message.claim = None", "pass"),
        ("body freed", "if conf.keep_bodies_days == 0:", "if False:"),
        ("body kept", "if conf.keep_bodies_days == 0:", "if True:"),
        ("sent signal", "_announce(signals.message_sent", "str"),
        (
            "rejected fails",
            "            _settle_rejected(found, event, using)\n",
            "            pass\n",
        ),
        (
            "rejected stays",
            "if message.status == OutgoingMessage.Status.FAILED and message.ses_message_id:",
            "if False:",
        ),
        ("it is noted", "        if self.noted:", "        if False:"),
        ("it is counted", "        if self.counted:", "        if False:"),
        ("tests don't count", "and domain != SIMULATOR_DOMAIN", ""),
        ("metrics", "    tell_counted(outcome.counted, using=using)", "    pass"),
    ),
]


# Rules that only a server's tests can hold.
if os.environ.get("TEST_DATABASE") == "postgres":
    MUTANTS += make_mutants(
        "brief.py",
        ("locks are not waited for", "for most in (LOCK_SECONDS, 3600)", "for most in (9, 3600)"),
        ("a statement ends", "round(deadline.left(most) * 1000) + 1", "round(most * 1000)"),
        ("nothing if it changed", "SELECT 1 / (count(*)", "SELECT 1 + (count(*)"),
        ("a table of the cache", 'execute([("SELECT 1", [])]', 'str([("SELECT 1", [])]'),
    )
    MUTANTS += make_mutants(
        "webhook.py",
        ("receivers of rows are told", "needs_rows\n            or signals", "signals"),
        ("receivers of notifications are told", "or signals.notification.has_listeners()", ""),
        ("disconnected, nobody is suppressed", "suppresses=bool(listening)", "suppresses=True"),
    )
    MUTANTS += make_mutants(
        "at_once.py",
        ("of mail that is settled", "found.status != OutgoingMessage.Status.SENT or ", ""),
        ("reports only", " or event.kind not in settlement.REPORTS", ""),
        ("soft bounces are followed", "or consequences.may_follow(event)", ""),
        ("what changed meanwhile", "except DataError:", "except ZeroDivisionError:"),
        ("changed meanwhile at all", "changes=len(outcome.changed) or None", "changes=None"),
        (
            "opt-outs",
            "statements.append(records.insert_suppressed",
            "str(records.insert_suppressed",
        ),
        ("counted for metrics", "    tell_counted(outcome.counted, using=using)", "    pass"),
    )
    MUTANTS += make_mutants(
        "settlement.py", ("who changed since stays", 'AND r.{status} = new.old"', '"')
    )
if os.environ.get("TEST_DATABASE", "sqlite") == "sqlite":
    MUTANTS += make_mutants(
        "brief.py",
        ("locks are not waited for long", "usual > min(_SQLITE_SECONDS", "0 > min(_SQLITE_SECONDS"),
        ("waiting is restored", "            _run(connection, undo)", "            pass"),
    )
if os.environ.get("TEST_DATABASE") == "mysql":
    MUTANTS += make_mutants(
        "brief.py",
        (
            "locks are not waited for",
            "dict.fromkeys(_MYSQL_LOCKS, math.ceil(seconds))",
            "dict.fromkeys(_MYSQL_LOCKS, 50)",
        ),
        ("waiting is restored", "= @connect_mailer_{name}", "= 2"),
    )


def main(*words: str) -> int:
    """Try every mutant whose rule or file has one of ``words``; return how many nobody noticed."""
    names = [
        f"test_{name}.py"
        for name in ("webhook", "subscription", "deadline", "at_once", "sns", "corpus", "fuzz")
    ]
    tests = [
        *(f"tests/feedback/{name}" for name in names),
        *(f"tests/test_{name}.py" for name in ("guard", "tallies", "telemetry")),
    ]
    return try_all(MUTANTS, FEEDBACK, tests, words)


def try_all(
    mutants: Sequence[Mutant], folder: Path, tests: Sequence[str], words: Sequence[str]
) -> int:
    """Break the rules that have one of ``words``, or all; return how many times nobody noticed."""
    unnoticed = 0
    # It ends as it would by itself, and so does the server of the database.
    signal.signal(signal.SIGTERM, lambda *_args: sys.exit(1))
    # One server for all: the tests' processes find its address in the environment.
    servers.databases()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name)
        for part in ("connect_mailer", "tests"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, copy / part, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if not _is_green(copy, tests, says_why=True):
            print("The tests fail before anything is broken.")  # noqa: T201
            return 1
        chosen = [
            mutant
            for mutant in mutants
            if not words or any(word in f"{mutant.rule} {mutant.file}" for word in words)
        ]
        for mutant in chosen:
            path = copy / folder / mutant.file
            text = path.read_text()
            broken = mutant.apply(text)
            if broken is None:
                outcome = "NOT FOUND"
            else:
                path.write_text(broken)
                # What is named after the file is the likeliest to notice, else the first of all:
                # alone, because most of the time goes into collecting the others.
                own = f"test_{path.stem}.py"
                first, *others = sorted(tests, key=lambda test: not test.endswith(own))
                is_green = _is_green(copy, [first]) and (not others or _is_green(copy, others))
                outcome = "UNNOTICED" if is_green else "noticed"
                path.write_text(text)
            unnoticed += outcome != "noticed"
            print(f"{outcome:10} {mutant.file:14} {mutant.rule}", flush=True)  # noqa: T201
        print(f"{len(chosen) - unnoticed} of {len(chosen)} broken rules were noticed.")  # noqa: T201
    return unnoticed


def _is_green(copy: Path, tests: Sequence[str], *, says_why: bool = False) -> bool:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    ]
    output = None if says_why else subprocess.DEVNULL
    result = subprocess.run(
        [*command, *tests],
        cwd=copy,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)},
        stdout=output,
        stderr=output,
        check=False,
        timeout=600,
    )
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
