"""The corpus: requests that strangers may send, and what the webhook must answer.

``README.md`` says how each class works. No case may write or download anything, and none
that is not 200 may send a signal.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from connect_mailer.testing.sns import TOPIC_ARN, SNSSigner, make_bounce

MESSAGE = make_bounce(["victim@example.com"])
KINDS = ("Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation")
REQUIRED = {
    "Notification": (
        "Type",
        "MessageId",
        "TopicArn",
        "Message",
        "Timestamp",
        "SignatureVersion",
        "Signature",
        "SigningCertURL",
    ),
}
REQUIRED["SubscriptionConfirmation"] = (*REQUIRED["Notification"], "Token", "SubscribeURL")
REQUIRED["UnsubscribeConfirmation"] = REQUIRED["SubscriptionConfirmation"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request; ``make`` gets the signer whose certificate the site trusts."""

    name: str
    make: Callable[[SNSSigner], str | bytes]
    status: int = 400
    method: str = "POST"
    # Of the WSGI environment: headers, and what a server tells about the body.
    environ: Mapping[str, str] = field(default_factory=dict)


def sign(signer: SNSSigner, kind: str = "Notification", **fields: object) -> str:
    """A genuine request of ``kind``, with ``fields`` under the signature."""
    if kind == "Notification":
        return signer.notification(MESSAGE, **fields)
    if kind == "SubscriptionConfirmation":
        return signer.subscription_confirmation(**fields)
    return signer.unsubscribe_confirmation(**fields)


def change(signer: SNSSigner, kind: str = "Notification", **fields: object) -> str:
    """A genuine request of ``kind``, changed after it was signed."""
    return json.dumps({**json.loads(sign(signer, kind)), **fields})


def requests() -> Iterator[Case]:
    """What is no POST, bodies whose length is a lie, headers that say something else."""
    methods = ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT"]
    for method in (*methods, "PROPFIND", "POSTS", "XPOST", "G\u0280T", "BREW", "POST "):
        for environ in (
            {},
            {"HTTP_X_HTTP_METHOD_OVERRIDE": "POST"},
            {"HTTP_X_METHOD_OVERRIDE": "POST", "HTTP_X_HTTP_METHOD": "POST"},
            {"QUERY_STRING": "_method=POST&Type=Notification"},
        ):
            yield Case(
                name=f"method {method!r} {environ}",
                make=_plain,
                status=404,
                method=method,
                environ=environ,
            )
    for length in ("", "0", "-1", "abc", "1e4", "0x100", "1,1000", "\u0661", "nan", "1", "100"):
        yield Case(name=f"length {length!r}", make=_plain, environ={"CONTENT_LENGTH": length})
    yield Case(
        name="chunked, and no length",
        make=lambda s: f"{len(_plain(s)):x}\r\n{_plain(s)}\r\n0\r\n\r\n",
        environ={"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    encodings: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "base64": base64.b64encode,
    }
    for name, encode in encodings.items():
        yield Case(
            name=f"encoded: {name}",
            make=lambda s, e=encode: e(_plain(s).encode()),
            environ={"HTTP_CONTENT_ENCODING": name},
        )
    yield Case(
        name="encoded: a bomb",
        make=lambda _signer: gzip.compress(bytes(2**24)),
        environ={"HTTP_CONTENT_ENCODING": "gzip"},
    )
    # Of no matter: what is signed is in the body.
    for environ in (
        {"CONTENT_LENGTH": "99999999"},
        {"CONTENT_TYPE": ""},
        {"CONTENT_TYPE": "application/json; charset=utf-16"},
        {"CONTENT_TYPE": "text/plain; charset=no-such-charset"},
        {"CONTENT_TYPE": "multipart/form-data"},
        {"CONTENT_TYPE": "multipart/form-data; boundary=" + "x" * 1000},
        {"CONTENT_TYPE": "application/x-www-form-urlencoded"},
        {"CONTENT_TYPE": ";;;=" * 100},
        {"HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE"},
        {"HTTP_X_AMZ_SNS_MESSAGE_TYPE": "UnsubscribeConfirmation"},
        {"HTTP_X_AMZ_SNS_TOPIC_ARN": "arn:aws:sns:us-east-1:999999999999:evil"},
        {"HTTP_CONTENT_ENCODING": "gzip"},
        {"HTTP_COOKIE": "sessionid=x; csrftoken=y"},
        {"HTTP_AUTHORIZATION": "Basic Og=="},
        {"QUERY_STRING": "TopicArn=evil&Type=x"},
    ):
        yield Case(name=f"of no matter: {environ}", make=_plain, status=200, environ=environ)
    for environ in (
        {"HTTP_X_AMZ_SNS_TOPIC_ARN": TOPIC_ARN},
        {"HTTP_X_AMZ_SNS_RAWDELIVERY": "true"},
    ):
        # Nor do they help.
        yield Case(
            name=f"no proof: {environ}", make=lambda s: change(s, Message="x"), environ=environ
        )
        yield Case(
            name=f"no proof, raw: {environ}", make=lambda _s: json.dumps(MESSAGE), environ=environ
        )


def bodies() -> Iterator[Case]:
    """What is no JSON object in UTF-8."""
    raw: dict[str, bytes] = {
        "empty": b"",
        "space": b" \n ",
        "text": b"hello",
        "form": b"Type=Notification&Message=x",
        "xml": b"<?xml version='1.0'?><Notification/>",
        "array": b"[]",
        "null": b"null",
        "true": b"true",
        "number": b"1",
        "string": b'"Notification"',
        "cut": b'{"Type": "Notification"',
        "trailing": b'{"Type": "Notification"} {}',
        "comment": b'{"Type": "Notification"} // x',
        "single quotes": b"{'Type': 'Notification'}",
        "trailing comma": b'{"Type": "Notification",}',
        "empty object": b"{}",
        "NaN": b'{"Type": NaN}',
        "Infinity": b'{"Type": Infinity}',
        "-Infinity": b'{"Type": -Infinity}',
        "huge integer": b'{"Type": ' + b"9" * 10_000 + b"}",
        "huge exponent": b'{"Type": 1e999999}',
        "nested arrays": b"[" * 200_000,
        "nested objects": b'{"a":' * 200_000,
        "nested closed": b'{"Type":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "raw NUL": b'{"Type": "Notification\0"}',
        "NULs": b"\0" * 100,
        "raw newline": b'{"Type": "Notifi\ncation"}',
        "bad escape": b'{"Type": "\\x41"}',
        "latin-1": '{"Type": "é"}'.encode("latin-1"),
        "overlong UTF-8": b'{"Type": "\xc0\x80"}',
        "raw surrogate": b'{"Type": "\xed\xa0\x80"}',
        "lone continuation": b"\x80",
        "0xff": b"\xff" * 10,
        "gzip": b"\x1f\x8b\x08\x00",
        "pickle": b"\x80\x04\x95\x00",
    }
    for name, body in raw.items():
        yield Case(name=f"body: {name}", make=lambda _signer, body=body: body)
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"):
        yield Case(
            name=f"body: {encoding}",
            make=lambda signer, encoding=encoding: (
                ("\u00a0" + sign(signer)).encode(encoding)
                if encoding == "utf-7"
                else sign(signer).encode(encoding)
            ),
        )
    yield Case(
        name="body: genuine, but in latin-1",
        make=lambda signer: json.dumps(
            json.loads(signer.notification("é")), ensure_ascii=False
        ).encode("latin-1"),
    )
    for constant in ("NaN", "Infinity", "-Infinity"):
        yield Case(
            name=f"body: genuine, and {constant} in an unsigned field",
            make=lambda signer, constant=constant: sign(signer)[:-1] + f', "X": {constant}}}',
        )
    yield Case(
        name="body: too large",
        make=lambda signer: sign(signer, Padding="x" * 1024 * 1024),
        status=413,
    )
    for name, text in {
        "twice at depth": '{"a": {"b": 1, "b": 2}}',
        "twice in an array": '[[{"b": 1, "b": 1}]]',
        "the same in escapes": '{"a": 1, "\\u0061": 2}',
        "huge integer at depth": "[" + "9" * 5000 + "]",
        "nested": "[" * 50_000 + "]" * 50_000,
        "NaN at depth": '{"a": [NaN]}',
    }.items():
        yield Case(
            name=f"body: genuine, and in an unsigned field {name}",
            make=lambda signer, text=text: _plain(signer)[:-1] + f', "X": {text}}}',
        )
    for name, text in {"1e999": "1e999", "half surrogate": '"\\ud800"', "NUL": '"\\u0000"'}.items():
        yield Case(
            name=f"body: genuine, and in an unsigned field {name}, of no matter",
            make=lambda signer, text=text: _plain(signer)[:-1] + f', "X": {text}}}',
            status=200,
        )
    yield Case(name="body: in an array", make=lambda signer: json.dumps([json.loads(sign(signer))]))
    yield Case(name="body: as a string", make=lambda signer: json.dumps(sign(signer)))
    for name in REQUIRED["Notification"]:
        # Two readers of one text may take different ones of two keys.
        for first in (True, False):
            yield Case(
                name=f"duplicate key: {name}, {'first' if first else 'last'}",
                make=lambda signer, name=name, first=first: _duplicate(signer, name, first=first),
            )


def _duplicate(signer: SNSSigner, name: str, *, first: bool) -> str:
    text = sign(signer)
    extra = f'"{name}": "forged"'
    return "{" + extra + ", " + text[1:] if first else text[:-1] + ", " + extra + "}"


def fields() -> Iterator[Case]:
    """Fields that are missing, of another type, empty, or hold what re-cuts the signed text."""
    odd = (None, "", 0, 1, 1.5, True, False, [], {}, ["x"], {"a": "b"}, "\ud800", "a\udfff")
    for kind in KINDS:
        for name in REQUIRED[kind]:
            yield Case(name=f"{kind}: no {name}", make=lambda s, k=kind, n=name: _without(s, k, n))
            for value in odd:
                yield Case(
                    name=f"{kind}: {name} is {value!r}",
                    make=lambda s, k=kind, n=name, v=value: change(s, k, **{n: v}),
                )
    controls = "\n\r\t\0\x0b\x0c\x1b\x7f\x85\u2028\u2029"
    for kind in KINDS:
        signed = set(REQUIRED[kind]) - {"Message", "Signature"}
        for name, control in itertools.product(sorted(signed), controls):
            yield Case(
                name=f"{kind}: {name} has {control!r}",
                make=lambda s, k=kind, n=name, c=control: _with_control(s, k, n, c),
            )
        for name in ("Message", "MessageId", "Timestamp"):
            yield Case(
                name=f"{kind}: {name} is empty, signed",
                make=lambda s, k=kind, n=name: _with_value(s, k, n, ""),
            )
    for value in (0, 1, True, [], {}, ["x"], "\ud800"):
        yield Case(name=f"Subject is {value!r}", make=lambda s, v=value: change(s, Subject=v))
    for value in ("x", "", "Notification "):
        yield Case(name=f"Type is {value!r}", make=lambda s, v=value: change(s, Type=v))
    for value in ("notification", "NOTIFICATION", "Notification\0", "Unknown", "SubscribeURL"):
        yield Case(name=f"signed Type {value!r}", make=lambda s, v=value: sign(s, Type=v))
    for value in ("0", "3", "1.0", "01", " 1", "1 ", "-1", "\uff11", "v2", "SHA256", 1, 2, None):
        yield Case(
            name=f"SignatureVersion {value!r}",
            make=lambda s, v=value: change(s, SignatureVersion=v),
        )
    yield Case(
        name="names in lower case",
        make=lambda s: json.dumps({k.lower(): v for k, v in json.loads(sign(s)).items()}),
    )
    yield Case(
        name="names as Lambda has them",
        make=lambda s: sign(s).replace("SigningCertURL", "SigningCertUrl"),
    )


def _without(signer: SNSSigner, kind: str, name: str) -> str:
    data = json.loads(sign(signer, kind))
    del data[name]
    return json.dumps(data)


def _with_control(signer: SNSSigner, kind: str, name: str, control: str) -> str:
    data = json.loads(sign(signer, kind))
    return _with_value(signer, kind, name, data[name] + control + "x")


def _with_value(signer: SNSSigner, kind: str, name: str, value: str) -> str:
    """A request whose signature covers ``value``."""
    data = json.loads(sign(signer, kind))
    del data["Signature"]
    return signer.sign({**data, name: value})


def topics() -> Iterator[Case]:
    """Topics that are not listened to, all under a signature that is right."""
    arns = [
        "arn:aws:sns:us-east-1:123456789012:other",
        "arn:aws:sns:us-east-1:999999999999:ses-feedback",
        "arn:aws:sns:us-west-2:123456789012:ses-feedback",
        "arn:aws-cn:sns:us-east-1:123456789012:ses-feedback",
        "arn:aws:sqs:us-east-1:123456789012:ses-feedback",
        TOPIC_ARN + "x",
        TOPIC_ARN + " ",
        " " + TOPIC_ARN,
        TOPIC_ARN + ".fifo",
        TOPIC_ARN + ":11111111-1111-1111-1111-111111111111",
        TOPIC_ARN[:-1],
        TOPIC_ARN[1:],
        TOPIC_ARN.upper(),
        TOPIC_ARN.replace("ses", "SES"),
        TOPIC_ARN.replace("ses", "\u0455es"),
        TOPIC_ARN.replace("-", "\u2010"),
        TOPIC_ARN + "\u200b",
        TOPIC_ARN + "," + TOPIC_ARN,
        f"['{TOPIC_ARN}']",
        "",
        "*",
        "arn:aws:sns:*:*:*",
        "a",
        ":",
        "%s",
        "x" * 10_000,
        TOPIC_ARN.replace("east-1", "east-\uff11"),
        TOPIC_ARN.replace("123456789012", "\u0661\u0662\u0663456789012"),
        TOPIC_ARN.replace("aws", "\uff41ws", 1),
        TOPIC_ARN.replace("aws:", "aws-iso:", 1),
        TOPIC_ARN.replace("aws:", "aws-us-gov:", 1),
        TOPIC_ARN.replace("us-east-1", "us-east-1.evil.example/"),
        TOPIC_ARN.replace("us-east-1", ""),
        TOPIC_ARN.replace("e", "e\u0301", 1),
        TOPIC_ARN + "\u0000",
        TOPIC_ARN + "\n",
        "\n" + TOPIC_ARN,
        TOPIC_ARN + "/",
        TOPIC_ARN + "?x",
        TOPIC_ARN + "#x",
        TOPIC_ARN.replace(":", "%3A"),
    ]
    for number, arn in enumerate(arns):
        for kind in KINDS:
            yield Case(
                name=f"{kind}: topic {number} {arn[:60]!r}",
                make=lambda s, k=kind, a=arn: sign(s, k, TopicArn=a),
            )


def certificates() -> Iterator[Case]:
    """Addresses of certificates that are not SNS's, or not of the topic's region."""
    host = "sns.us-east-1.amazonaws.com"
    name = "SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
    hosts = [
        "evil.example",
        "sns.us-east-1.amazonaws.com.evil.example",
        "evil.example.sns.us-east-1.amazonaws.com",
        "evilsns.us-east-1.amazonaws.com",
        "sns.us-east-1.amazonaws.comevil",
        "snsxus-east-1xamazonawsxcom",
        "sns.us-east-1.amazonaws.evil.com",
        "sns.evil.amazonaws.com.s3.amazonaws.com",
        "s3.amazonaws.com",
        "s3.us-east-1.amazonaws.com",
        "sns.s3.amazonaws.com",
        "sns-us-east-1.s3.amazonaws.com",
        "bucket.s3.us-east-1.amazonaws.com",
        "sns.amazonaws.com",
        "sns.us-west-2.amazonaws.com",
        "sns.us-east-1.amazonaws.com.cn",
        "sns.us-east-1.api.aws",
        "SNS.us-east-1.amazonaws.com",
        "sns.US-EAST-1.amazonaws.com",
        "sns.us-east-1.AMAZONAWS.COM",
        "sns.us-east-1.amazonaws.com.",
        "sns.us-east-1.amazonaws.com:443",
        "sns.us-east-1.amazonaws.com:8443",
        "sns.us-east-1.amazonaws.com:",
        "user@sns.us-east-1.amazonaws.com",
        "user:password@sns.us-east-1.amazonaws.com",
        "sns.us-east-1.amazonaws.com@evil.example",
        "sns.us-east-1.amazonaws.com%40evil.example",
        "evil.example#sns.us-east-1.amazonaws.com",
        "evil.example?sns.us-east-1.amazonaws.com",
        "evil.example\\@sns.us-east-1.amazonaws.com",
        "sns.us-east-1.amazonaws.com\\.evil.example",
        "sns.us-east-1.amazonaws.com%2eevil.example",
        "sns%2eus-east-1.amazonaws.com",
        "sns\u3002us-east-1\u3002amazonaws\u3002com",
        "sns\uff0eus-east-1.amazonaws.com",
        "\uff53ns.us-east-1.amazonaws.com",
        "\u0455ns.us-east-1.amazonaws.com",
        "sns.us-east-1.amazonaw\u017f.com",
        "sn\u017f.us-east-1.amazonaws.com",
        "sns.us-east-\uff11.amazonaws.com",
        "sns.us-east-1.amazonaws\u3002com",
        "sns.us-east-1.xn--amazonas-6te.com",
        "xn--ns-rka.us-east-1.amazonaws.com",
        "sns.us-east-1.amazonaws.com\u200b",
        "sns.us-east-1.amazonaws.com\t",
        "sns.us-east-1.amazonaws.com\n",
        "sns.us-east-1.amazonaws.com:443@evil.example",
        "sns.us-east-1.amazonaws.com:0",
        "sns.us-east-1.amazonaws.com&evil.example",
        "sns.us-east-1.amazonaws.com;evil.example",
        "sns.us-east-1.amazonaws.com\u2044evil.example",
        "sns.us-east-1.amazonaws.eu",
        "sns.us-iso-east-1.c2s.ic.gov",
        "sns-fips.us-east-1.amazonaws.com",
        "sns.us-east-1.vpce.amazonaws.com",
        "%73ns.us-east-1.amazonaws.com",
        "localhost",
        "127.0.0.1",
        "[::1]",
        "169.254.169.254",
        "0x7f000001",
        "2130706433",
        "metadata.google.internal",
        "",
    ]
    urls = [f"https://{entry}/{name}" for entry in hosts]
    urls += [f"https://{host}{path}" for path in _paths(name)]
    urls += [
        f"http://{host}/{name}",
        f"HTTPS://{host}/{name}",
        f"Https://{host}/{name}",
        f"ftp://{host}/{name}",
        f"file://{host}/{name}",
        f"file:///{name}",
        f"//{host}/{name}",
        f"{host}/{name}",
        f"/{name}",
        name,
        f"https:{host}/{name}",
        f"https:/{host}/{name}",
        f"https:///{host}/{name}",
        f"https:\\\\{host}\\{name}",
        f" https://{host}/{name}",
        f"https://{host}/{name} ",
        f"https://{host}/ {name}",
        f"https://{host}//{name}",
        f"https://{host}/{name}\u200b",
        f"\ufeffhttps://{host}/{name}",
        f"data:text/plain,{name}",
        f"javascript:{name}",
        f"https://evil.example/https://{host}/{name}",
        f"https://{host}/{name},https://evil.example/",
        "x" * 10_000,
        f"https://{host}/SimpleNotificationService-{'a' * 10_000}.pem",
    ]
    for number, url in enumerate(urls):
        for kind in KINDS[:2]:
            yield Case(
                name=f"{kind}: certificate {number} {url[:70]!r}",
                make=lambda s, k=kind, u=url: sign(s, k, SigningCertURL=u),
            )


def _paths(name: str) -> list[str]:
    return [
        "",
        "/",
        f"/{name}?x=y",
        f"/{name}?",
        f"/{name}#x",
        f"/{name}#",
        f"/{name};x",
        f"/{name}/",
        f"/{name}.txt",
        f"/{name}.pem",
        f"/x/{name}",
        f"/./{name}",
        f"/../{name}",
        f"/x/../{name}",
        f"/%2e%2e/{name}",
        f"/{name}%00",
        f"/{name}%0a",
        f"/x{name}",
        f"/{name.lower()}",
        f"/{name[:-4]}",
        f"/{name[:-4]}.PEM",
        f"/{name[:-4]}.crt",
        "/SimpleNotificationService.pem",
        "/SimpleNotificationService-.pem",
        "/SimpleNotificationService-a.b.pem",
        "/SimpleNotificationService-a_b.pem",
        "/SimpleNotificationService-a-b.pem",
        "/SimpleNotificationService-a%41.pem",
        "/SimpleNotificationService-é.pem",
        "/SimpleNotificationService-\u0661.pem",
        "/?Action=GetCertificate",
    ]


def signatures() -> Iterator[Case]:
    """Signatures that are not this text's, of this key, in this version."""
    for kind in KINDS:
        for name in REQUIRED[kind]:
            if name in ("Type", "SigningCertURL", "SignatureVersion", "TopicArn"):
                continue
            yield Case(
                name=f"{kind}: {name} changed",
                make=lambda s, k=kind, n=name: _changed(s, k, n),
            )
        for other in KINDS:
            if other != kind:
                yield Case(
                    name=f"{kind} as {other}",
                    make=lambda s, k=kind, o=other: json.dumps(
                        {"Token": "t", "SubscribeURL": "u"} | json.loads(sign(s, k)) | {"Type": o}
                    ),
                )
        yield Case(
            name=f"{kind}: versions swapped",
            make=lambda s, k=kind: change(s, k, SignatureVersion="2"),
        )
        yield Case(
            name=f"{kind}: version 2 as 1",
            make=lambda s, k=kind: json.dumps(
                json.loads(sign(s, k, version="2")) | {"SignatureVersion": "1"}
            ),
        )
    values = {
        "not base64": "%%%",
        "one byte": "AA==",
        "zeros": base64.b64encode(bytes(256)).decode(),
        "ones": base64.b64encode(b"\xff" * 256).decode(),
        "one": base64.b64encode(bytes(255) + b"\1").decode(),
        "too long": base64.b64encode(bytes(100_000)).decode(),
        "url-safe": "_-" * 100,
        "not ASCII": "é" * 344,
        "hex": "ab" * 256,
        "space": " ",
        "padding only": "====",
    }
    for name, value in values.items():
        yield Case(name=f"signature: {name}", make=lambda s, v=value: change(s, Signature=v))
    edits: dict[str, Callable[[str], str]] = {
        "wrapped": lambda text: text[:76] + "\n" + text[76:],
        "newline at the end": lambda text: text + "\n",
        "space in front": lambda text: " " + text,
        "no padding": lambda text: text.rstrip("="),
        "more padding": lambda text: text + "====",
        "data after padding": lambda text: text + "AAAA",
        "stray character": lambda text: text[:10] + "!" + text[10:],
        "twice": lambda text: text + text,
        "cut": lambda text: text[:-8],
        "in the URL-safe alphabet": lambda text: text.translate(str.maketrans("+/", "-_")) + "-",
        "trailing bits": lambda text: text[:-3] + chr(ord(text[-3]) + 1) + text[-2:],
    }
    for name, edit in edits.items():
        yield Case(name=f"signature: {name}", make=lambda s, e=edit: _edit_signature(s, e))
    yield Case(name="Subject added", make=lambda s: change(s, Subject="x"))
    yield Case(name="Subject added, empty", make=lambda s: change(s, Subject=""))
    yield Case(
        name="Subject removed",
        make=lambda s: json.dumps(
            {k: v for k, v in json.loads(sign(s, subject="x")).items() if k != "Subject"}
        ),
    )
    yield Case(name="cut again: message into a subject", make=_recut)
    for name in ("UnsubscribeURL", "MessageAttributes", "SubscribeURL"):
        yield Case(
            name=f"unsigned {name} is of no matter",
            make=lambda s, n=name: _plain(s, **{n: "https://evil.example/"}),
            status=200,
        )


def _plain(signer: SNSSigner, **fields: object) -> str:
    return json.dumps({**json.loads(signer.notification("text")), **fields})


def _changed(signer: SNSSigner, kind: str, name: str) -> str:
    data = json.loads(sign(signer, kind))
    data[name] = "x" + data[name]
    return json.dumps(data)


def _edit_signature(signer: SNSSigner, edit: Callable[[str], str]) -> str:
    data = json.loads(sign(signer))
    return json.dumps({**data, "Signature": edit(data["Signature"])})


def _recut(signer: SNSSigner) -> str:
    data = json.loads(
        signer.notification("forged\nMessageId\nnew\nSubject\nrest", message_id="real")
    )
    data |= {"Message": "forged", "MessageId": "new", "Subject": "rest\nMessageId\nreal"}
    return json.dumps(data)


def messages() -> Iterator[Case]:
    """What SNS did sign, and is about no mail, or about nobody whose address can be read."""
    texts = [
        "",
        " ",
        "text",
        "null",
        "true",
        "1",
        "1e999",
        '"Bounce"',
        "[]",
        "[[]]",
        "{}",
        "{",
        "NaN",
    ]
    texts += ["[" * 60_000, '{"mail": {}}', '{"notificationType": "Bounce"}', "\0", "\ufeff{}"]
    texts += [
        '{"notificationType": "Bounce", "notificationType": "Bounce", "mail": {}}',
        "9" * 5000,
    ]
    for text in texts[1:]:
        yield _about_nobody(f"message {text[:60]!r}", text)
    for form, kind in itertools.product(
        ("notificationType", "eventType"),
        (
            None,
            "",
            0,
            1,
            True,
            [],
            ["Bounce"],
            {},
            "bounce",
            "BOUNCE",
            "Bounce ",
            "\0",
            "x" * 10_000,
        ),
    ):
        yield _about_nobody(
            f"{form} is {str(kind)[:20]!r} ({type(kind).__name__})",
            {**MESSAGE, "notificationType": None, form: kind},
        )
    odd: tuple[object, ...] = (
        None,
        "",
        "a@example.com",
        0,
        1.5,
        True,
        {},
        {"emailAddress": "a@b.c"},
    )
    for name, part, records in (
        ("Bounce", "bounce", "bouncedRecipients"),
        ("Complaint", "complaint", "complainedRecipients"),
        ("Delivery", "delivery", "recipients"),
    ):
        for form in ("notificationType", "eventType"):
            base = {form: name, "mail": {"messageId": "x", "destination": ["a@b.c", "d@e.f"]}}
            for value in (*odd, [], [None], [[]], [{}], [0], [True], [["a@example.com"]]):
                message = {**base, part: {records: value}}
                yield _about_nobody(f"{name} as {form}, {records} is {value!r}", message)
            for value in (*odd, []):
                yield _about_nobody(f"{name} as {form}, {part} is {value!r}", {**base, part: value})
            yield _about_nobody(f"{name} as {form}, no {part}", base)
            for value in (None, "", "x", 0, True, [], ["a@example.com"]):
                message = {**MESSAGE, form: name, "mail": value}
                yield _about_nobody(f"{name} as {form}, mail is {value!r}", message)
        for address in _NO_ADDRESSES:
            record = address if name == "Delivery" else {"emailAddress": address}
            base = {"notificationType": name, "mail": {"messageId": "x", "destination": ["a@b.c"]}}
            yield _about_nobody(
                f"{name} of {str(address)[:40]!r}, {len(str(address))} ({type(address).__name__})",
                {**base, part: {records: [record]}},
            )


_NO_ADDRESSES: tuple[object, ...] = (
    None,
    0,
    True,
    [],
    {},
    ["a@example.com"],
    "",
    " ",
    "\0",
    "a",
    "@",
    "@example.com",
    "a@",
    "a@@example.com",
    "a@b@example.com",
    "a@example.com, b@example.com",
    "a@example.com b@example.com",
    "a@exam ple.com",
    "a@-example.com",
    "a@example..com",
    "a@.example.com",
    "a@example.com\r\nBcc: b@example.com",
    "a\n@example.com",
    "a@example.com\x00\x01",
    "a@exam\u212aple.com",
    "a@\u2100.example",
    "a@[127.0.0.1]",
    "a@xn--\u212a.example",
    "a@" + "x" * 64 + ".example",
    "a" * 65 + "@example.com",
    "a@" + "b." * 200 + "example",
    "x" * 200_000,
    "a@" + "x" * 200_000,
    "(" * 5000,
    '"' * 5000,
    "<" * 5000 + "a@example.com" + ">" * 5000,
    "undisclosed-recipients:;",
    "friends: a@example.com;",
    "<>",
    "MAILER-DAEMON",
    "rfc822;",
    "rfc822; ",
    "rfc822",
    "x400; /C=DE/A=x/",
    "utf-8; a@example.com",
    "unknown; a@example.com",
    "mailto:",
    "a@example.com?subject=x",
    "a@\ud800.example",
    "a@example\u3002com",
    "a@example\uff0ecom",
    "a@example\uff61com",
    "a@=?utf-8?q?example.com?=",
    "a@=?utf-8?q?=e9?=",
)


def _about_nobody(name: str, message: object) -> Case:
    text = message if isinstance(message, str) else json.dumps(message)
    return Case(name=f"signed: {name}", make=lambda s, t=text: s.notification(t), status=200)


def signed() -> Iterator[Case]:
    """What SNS signs itself may be odd, and is taken: times, ids, subjects."""
    plain: dict[str, dict[str, str]] = {
        f"Timestamp {value!r}": {"Timestamp": value}
        for value in (
            "x",
            "0",
            "1970-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "2012-02-30",
            "\u0661",
        )
    }
    plain |= {
        f"MessageId {value[:20]!r}, {len(value)}": {"message_id": value}
        for value in (
            "x",
            " ",
            "\u00e9",
            "x" * 100,
            "x" * 101,
            "x" * 100_000,
            "' OR 1=1 --",
            "%s{0}",
        )
    }
    plain |= {
        f"Subject {value[:20]!r}": {"subject": value}
        for value in ("", " ", "x" * 10_000, "a\nb", "MessageId", "\0", "\u2028")
    }
    for version, (name, fields) in itertools.product(("1", "2"), plain.items()):
        yield Case(
            name=f"signed, version {version}: {name}",
            make=lambda s, v=version, f=fields: s.notification("text", version=v, **f),
            status=200,
        )
    yield Case(
        name="signed: a Subject with a line of the signed text",
        make=lambda s: s.notification("text", subject="MessageId\nx"),
    )
    yield Case(name="signed: Subject is null", make=lambda s: _plain(s, Subject=None), status=200)


def make_all() -> list[Case]:
    """Every case, each name once."""
    groups = (requests, bodies, fields, topics, certificates, signatures, messages, signed)
    return [case for group in groups for case in group()]
