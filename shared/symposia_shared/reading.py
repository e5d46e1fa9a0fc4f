"""Small objects read from S3 without boto3, whose import and client cost a command line a third of a second.

Reads alone, one try, static keys and an endpoint that are given: whatever else there is, and whatever fails, is for
``symposia_shared.store``. Signed as https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html says.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus, urlsplit

if TYPE_CHECKING:
    from symposia_shared.settings import S3Settings

_EMPTY = hashlib.sha256(b"").hexdigest()
_KEY = re.compile(r"<Key>([^<]*)</Key>")
_NEXT = re.compile(r"<NextContinuationToken>([^<]*)</NextContinuationToken>")


class QuickReader:
    """A bucket, read. Raises OSError, http.client.HTTPException or ValueError for whatever is not a plain answer."""

    def __init__(self, settings: S3Settings) -> None:
        end = urlsplit(settings.endpoint_url or "")
        if end.scheme not in ("http", "https") or end.path.strip("/") or not settings.access_key or settings.secret_key is None:
            raise ValueError("such an S3 is read by boto3")
        self._tls, self._host = end.scheme == "https", end.netloc
        self._access, self._secret = settings.access_key, settings.secret_key.get_secret_value()
        self._region, self._bucket = settings.region, settings.bucket

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        """The object's bytes and its ETag, or None where there is none."""
        status, body, etag = self._get(f"/{self._bucket}/{quote(key, safe='/~-._')}", "")
        return None if status == 404 else (body, etag)

    def keys(self, prefix: str) -> list[str]:
        """All keys under ``prefix``, in order."""
        found: list[str] = []
        token = ""
        while True:
            query = {"encoding-type": "url", "list-type": "2", "prefix": prefix, **({"continuation-token": token} if token else {})}
            _, body, _ = self._get(f"/{self._bucket}", "&".join(f"{k}={quote(v, safe='~-._')}" for k, v in sorted(query.items())), must=True)
            text = body.decode()
            found += [unquote_plus(key) for key in _KEY.findall(text)]
            following = _NEXT.search(text)
            if following is None:
                return found
            token = following[1].replace("&amp;", "&")

    def _get(self, path: str, query: str, *, must: bool = False) -> tuple[int, bytes, str]:
        connect = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = connect(self._host, timeout=10)
        try:
            connection.request("GET", f"{path}?{query}" if query else path, headers=self._signed(path, query))
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200 and (must or answer.status != 404):
            raise ValueError(f"S3 answered {answer.status}")
        return answer.status, body, answer.headers.get("ETag", "")

    def _signed(self, path: str, query: str) -> dict[str, str]:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self._host, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
        names = ";".join(headers)
        request = "\n".join(["GET", path, query, *(f"{k}:{v}" for k, v in headers.items()), "", names, _EMPTY])
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        key = f"AWS4{self._secret}".encode()
        for part in (now[:8], self._region, "s3", "aws4_request", f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self._access}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        return headers
