"""S3: the suite against a real moto_server, and what is its own."""

from __future__ import annotations

import asyncio
import itertools
import re
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import google_crc32c
import pytest
from botocore.exceptions import ClientError

from asynctune.errors import (
    AuthenticationError,
    ConditionFailedError,
    ConfigError,
    NotFoundError,
    StorageError,
)
from asynctune.storage.crc import crc32c_text
from asynctune.storage.retry import RetryPolicy
from asynctune.storage.s3 import S3Storage, open_storage
from asynctune.storage.s3_client import make_client, read_options
from asynctune.storage.s3_values import receiving
from asynctune.storage.threads import Threads
from asynctune.storage.uri import StorageURI, parse_uri
from asynctune.storage.values import (
    Condition,
    Conflict,
    FileRange,
    IfVersion,
    ObjectInfo,
    OnlyCreate,
    Stored,
    Upload,
    UploadedPart,
)
from asynctune.testing import ObjectStorageTests
from asynctune.testing.storage_scenes import entries, file_of, pattern, version_of
from tests.storage.moto import moto_server

QUICK = RetryPolicy(base_s=0.001, cap_s=0.002, max_attempts=3)
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def endpoint():
    with moto_server() as url:
        yield url


@pytest.fixture
def options(endpoint) -> dict[str, Any]:
    return {"key": "AKTEST", "secret": "hidden-secret", "endpoint_url": endpoint, "region": "us-east-1"}


@pytest.fixture
def uri(endpoint) -> StorageURI:
    name = f"bucket-{next(NUMBERS)}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=20).close()
    return parse_uri(f"s3://{name}/some/prefix")


class TestS3(ObjectStorageTests):
    @pytest.fixture
    def make_storage(self, uri, options):
        async def make():
            return await open_storage(uri, options)

        return make

    # moto_server fails in two places that the suite shows; what S3 answers there is scripted further down.

    @pytest.mark.parametrize("condition", [OnlyCreate()], ids=["create"])
    async def test_the_condition_holds_at_the_end(self, storage, condition):
        """It ignores If-Match at the completion."""
        await super().test_the_condition_holds_at_the_end(storage, condition)

    async def test_an_abort_leaves_nothing(self, storage, other):
        """It answers 500 to parts and completions of an upload that is gone."""
        part_bytes = storage.upload_rules.min_part_bytes
        upload = await storage.begin_upload("a/b", size_bytes=2 * part_bytes, part_bytes=part_bytes)
        await storage.put_part(upload, 1, pattern(part_bytes))
        for prefix, found in (("", ["a/b"]), ("a/", ["a/b"]), ("b", [])):
            assert [pending.key async for pending in other.list_uploads(prefix)] == found
        await other.abort_upload(upload.key, upload.upload_id)
        await storage.abort_upload(upload.key, upload.upload_id)
        assert [pending.key async for pending in storage.list_uploads()] == []
        assert await storage.head("a/b") is None
        with pytest.raises(NotFoundError):
            await storage.list_parts(upload)


# -- against the server ------------------------------------------------------------------------------------


async def test_the_checksum_is_kept_and_told(uri, options):
    storage = await open_storage(uri, options)
    data = pattern(6 << 20)
    await storage.put("k", data)
    upload = await storage.begin_upload("u", size_bytes=len(data), part_bytes=5 << 20)
    assert isinstance(upload, Upload)
    pieces = [data[: 5 << 20], data[5 << 20 :]]
    parts = [await storage.put_part(upload, number, piece) for number, piece in enumerate(pieces, 1)]
    await storage.complete_upload(upload, parts)
    for key in ("k", "u"):
        info = await storage.head(key)
        assert info is not None
        assert info.crc32c == google_crc32c.value(data)
    await storage.aclose()


async def test_a_large_file_with_another_checksum_is_not_sent_to_its_end(uri, options, tmp_path):
    storage = await open_storage(uri, options)
    source = FileRange(await file_of(tmp_path, pattern(3 << 20)), 0, 3 << 20)
    with pytest.raises(StorageError, match="checksum") as caught:
        await storage.put("k", source, crc32c=1)
    assert not caught.value.retryable
    assert await storage.head("k") is None
    await storage.aclose()


async def test_times_of_listings_and_heads_are_the_same(uri, options):
    storage = await open_storage(uri, options)
    await storage.put("k", b"1")
    (listed,) = [entry async for entry in storage.list_objects()]
    head = await storage.head("k")
    assert isinstance(listed, ObjectInfo)
    assert head is not None
    assert abs(listed.modified_at - head.modified_at) <= 1  # one tells fractions
    await storage.aclose()


async def test_a_missing_bucket_is_no_missing_object(options):
    storage = await open_storage(parse_uri("s3://no-such-bucket/p"), options)
    for call in (storage.head("k"), storage.read("k"), storage.put("k", b""), entries(storage)):
        with pytest.raises(NotFoundError, match="no bucket"):
            await call
    await storage.aclose()


async def test_prefixes_do_not_see_each_other(uri, options):
    bucket = uri.bucket
    one, two = [await open_storage(parse_uri(f"s3://{bucket}/{name}"), options) for name in ("a", "ab")]
    await one.put("k", b"1")
    await two.put("l", b"2")
    assert (await entries(one), await entries(two)) == (["k"], ["l"])
    assert one.location == f"s3://{bucket}/a"
    await one.aclose()
    await two.aclose()


async def test_credentials_and_endpoint_of_the_environment(uri, endpoint, monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("ENDPOINT_URL_S3", endpoint)):
        monkeypatch.setenv(f"AWS_{name}", value)
    storage = await open_storage(uri, {})
    assert isinstance(await storage.put("k", b"1"), Stored)
    await storage.aclose()


@pytest.fixture
def nothing_configured(monkeypatch, tmp_path):
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("nothing_configured")
async def test_no_credentials(uri, endpoint):
    storage = await open_storage(uri, {"endpoint_url": endpoint})
    with pytest.raises(AuthenticationError, match="AWS_ACCESS_KEY_ID") as caught:
        await storage.head("k")
    assert not caught.value.retryable
    await storage.aclose()


@pytest.mark.usefixtures("nothing_configured")
async def test_a_profile_that_is_not_there(uri):
    with pytest.raises(ConfigError, match="AWS_PROFILE"):
        await open_storage(uri, {"profile": "nobody"})


@pytest.mark.usefixtures("nothing_configured")
async def test_a_profile_of_the_files(uri, endpoint, tmp_path):
    lines = ["[there]", "aws_access_key_id = k", "aws_secret_access_key = s"]
    (tmp_path / "SHARED_CREDENTIALS_FILE").write_text("\n".join(lines))
    storage = await open_storage(uri, {"profile": "there", "endpoint_url": endpoint})
    assert isinstance(await storage.put("k", b"1"), Stored)
    await storage.aclose()


# -- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"sekret": "hidden"},
        {"key": "hidden"},
        {"token": "hidden"},
        {"key": "hidden", "secret": ""},
        {"key": "hidden", "aws_access_key_id": "hidden", "secret": "hidden"},
        {"profile": b"hidden"},
        {"anon": True, "key": "hidden", "secret": "hidden"},
        {"anon": "yes"},
        {"endpoint_url": "http://hidden:hidden@host"},
        {"endpoint_url": "host:9000/hidden", "region": "x"},
        {"endpoint_url": "http://host:port/hidden", "use_ssl": True},
        {"addressing_style": "hidden"},
        {"verify": 3},
    ],
    ids="-".join,
)
def test_options_that_cannot_be(given):
    with pytest.raises(ConfigError) as caught:
        read_options(given)
    assert "hidden" not in str(caught.value)


def test_options_have_the_names_of_others_and_are_not_shown():
    options = read_options({"aws_access_key_id": "k", "aws_secret_access_key": "hidden", "region_name": None})
    assert (options["key"], options["secret"], options["region"]) == ("k", "hidden", None)
    assert "hidden" not in repr(options)
    assert options.conditional_writes


# -- what S3 answers and moto_server does not --------------------------------------------------------------


def refusal(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Any")


class Scripted:
    """A client whose methods answer what they are told to, one after the other; an error is raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            answer = self.answers[name].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def scripted(**answers: list[Any]) -> tuple[S3Storage, Scripted]:
    client = Scripted(**answers)
    uri = parse_uri("s3://bucket/p")
    return S3Storage(uri, client, Threads("test", 1), read_options({}), policy=QUICK), client


def upload_of(condition: Condition) -> tuple[Upload, list[UploadedPart]]:
    upload = Upload(key="k", upload_id="hidden", size_bytes=3, part_bytes=5 << 20, condition=condition)
    return upload, [UploadedPart(1, 3, '"tag"', google_crc32c.value(b"abc"))]


async def test_a_part_without_a_checksum_may_be_known_by_its_md5():
    """Servers that keep no CRC-32C; an ETag in quotes, as it has to be given back."""
    md5 = "0123456789abcdef0123456789abcdef"
    tag = f'"{md5.upper()}"'
    listed = {"PartNumber": 1, "Size": 3, "ETag": tag}
    checksum = {"ChecksumCRC32C": crc32c_text(7)}
    parts = [listed, {**listed, **checksum, "PartNumber": 2}]
    storage, _ = scripted(list_parts=[{"Parts": parts, "IsTruncated": False}])
    upload, _ = upload_of(OnlyCreate())
    assert await storage.list_parts(upload) == [
        UploadedPart(1, 3, tag, None, md5),
        UploadedPart(2, 3, tag, 7),
    ]


async def test_two_writes_that_met_are_sent_again():
    met = refusal("ConditionalRequestConflict", 409)
    storage, client = scripted(put_object=[met, {"ETag": '"v"'}])
    assert await storage.put("k", b"1", condition=OnlyCreate()) == Stored("v")
    assert [arguments["IfNoneMatch"] for _, arguments in client.calls] == ["*", "*"]


@pytest.mark.parametrize(
    "code", [("PreconditionFailed", 412), ("NoSuchKey", 404), ("ConditionalRequestConflict", 409)], ids=str
)
async def test_a_completion_whose_condition_does_not_hold(code):
    storage, client = scripted(complete_multipart_upload=[refusal(*code)])
    assert await storage.complete_upload(*upload_of(IfVersion("v"))) == Conflict()
    assert client.calls[0][1]["IfMatch"] == '"v"'


async def test_an_upload_that_is_gone():
    gone = [refusal("NoSuchUpload", 404)]
    storage, _ = scripted(upload_part=gone, complete_multipart_upload=[*gone, refusal("InvalidPart", 400)])
    upload, parts = upload_of(OnlyCreate())
    with pytest.raises(NotFoundError) as caught:
        await storage.put_part(upload, 1, b"abc")
    assert "hidden" not in str(caught.value)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await storage.complete_upload(upload, parts)


async def test_an_abort_is_repeated_while_parts_come():
    gone = refusal("NoSuchUpload", 404)
    storage, client = scripted(
        abort_multipart_upload=[{}, {}], list_parts=[{"Parts": [{"PartNumber": 1}]}, gone]
    )
    await storage.abort_upload("k", "hidden")
    assert [name for name, _ in client.calls] == ["abort_multipart_upload", "list_parts"] * 2


async def test_what_a_deletion_left_is_deleted_again():
    left = {"Errors": [{"Key": "p/b", "Code": "InternalError"}, {"Key": "p/c", "Code": "NoSuchKey"}]}
    storage, client = scripted(delete_objects=[left, {}])
    await storage.delete(["a", "b", "c"])
    assert client.calls[1][1]["Delete"]["Objects"] == [{"Key": "p/b"}]


async def test_a_deletion_that_is_refused_names_the_first():
    refused = {"Errors": [{"Key": "p/b", "Code": "AccessDenied"}]}
    storage, client = scripted(delete_objects=[refused])
    with pytest.raises(AuthenticationError) as caught:
        await storage.delete(["a", "b"])
    assert caught.value.key == "b"
    assert len(client.calls) == 1


async def test_a_body_that_is_cut_can_be_read_again():
    async def cut(size: int) -> bytes:
        raise aiohttp.ClientPayloadError("not enough data")

    chunks = receiving(SimpleNamespace(read=cut), key="k", location="s3://b")
    with pytest.raises(StorageError) as caught:
        await anext(chunks)
    assert caught.value.retryable
    assert caught.value.key == "k"


# -- what happens to connections ---------------------------------------------------------------------------


@asynccontextmanager
async def raw_server(*replies: bytes) -> AsyncGenerator[tuple[str, list[bytes]], None]:
    """Answers each request, whole, with the next of these bytes, and ends the connection; keeps the bodies."""
    bodies: list[bytes] = []
    left = list(replies)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = re.search(rb"content-length: (\d+)", head)
                bodies.append(await reader.readexactly(int(size[1]) if size else 0))
                reply = left.pop(0)
                writer.write(reply)
                await writer.drain()
                if not reply.endswith(KEPT):
                    break
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", bodies
    finally:
        server.close()


KEPT = b'ETag: "v"\r\nContent-Length: 0\r\n\r\n'
TIMES = b"Last-Modified: Mon, 23 Nov 2026 07:00:00 GMT\r\n"


async def opened(endpoint: str, policy: RetryPolicy | None = None) -> S3Storage:
    options = read_options({"key": "k", "secret": "s", "endpoint_url": endpoint, "region": "us-east-1"})
    threads = Threads("s3", 2)
    client = await make_client(options, threads)
    return S3Storage(parse_uri("s3://bucket"), client, threads, options, policy=policy)


async def test_a_body_that_ends_too_early_may_be_read_again():
    cut = b'HTTP/1.1 200 OK\r\nETag: "v"\r\n' + TIMES + b"Content-Length: 10\r\n\r\n01234"
    whole = b'HTTP/1.1 200 OK\r\nETag: "v"\r\n' + TIMES + b"Content-Length: 10\r\n\r\n0123456789"
    async with raw_server(cut, cut, whole) as (endpoint, _):
        storage = await opened(endpoint)
        async with storage.get("k") as body:
            with pytest.raises(StorageError) as caught:
                _ = [chunk async for chunk in body]
        assert caught.value.retryable
        assert (await storage.read("k")).data == b"0123456789"
        await storage.aclose()


async def test_a_damaged_body_is_found_out():
    checksum = crc32c_text(google_crc32c.value(b"0123456789")).encode()
    head = b'HTTP/1.1 200 OK\r\nETag: "v"\r\n' + TIMES + b"x-amz-checksum-crc32c: " + checksum
    head += b"\r\nContent-Length: 10\r\n\r\n"
    async with raw_server(head + b"0123x56789", head + b"0123456789") as (endpoint, _):
        storage = await opened(endpoint)
        assert (await storage.read("k")).data == b"0123456789"
        await storage.aclose()


async def test_an_error_in_a_reply_that_says_ok_is_one():
    body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>later</Message></Error>"
    failed = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    done = b"<CompleteMultipartUploadResult><ETag>&quot;v&quot;</ETag></CompleteMultipartUploadResult>"
    well = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(done), done)
    async with raw_server(failed, well) as (endpoint, bodies):
        storage = await opened(endpoint)
        assert await storage.complete_upload(*upload_of(OnlyCreate())) == Stored("v")
        assert len(bodies) == 2
        await storage.aclose()


def replied(body: bytes = b"", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (headers, len(body), body)


ERROR = replied(b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>later</Message></Error>")
OBJECT = b'ETag: "v"\r\n' + TIMES
MODIFIED = b"2026-11-23T07:00:00.000Z"
PAGE = b"<IsTruncated>false</IsTruncated>"
ONE = b"<Contents><Key>k</Key>%s<LastModified>" + MODIFIED + b"</LastModified><Size>1</Size></Contents>"
ETAG = b"<ETag>v</ETag>"


def listing(kind: bytes, entries: bytes) -> bytes:
    return replied(b"<?xml version='1.0'?><%s>%s%s</%s>" % (kind, PAGE, entries, kind))


HALF_REPLIES = {
    "put": ([ERROR, replied()], replied(headers=OBJECT)),
    "head": ([replied(headers=TIMES), replied(headers=b'ETag: "v"\r\n'), replied()], replied(headers=OBJECT)),
    "read": ([ERROR, replied(b"1", TIMES), replied(b"1", b'ETag: ""\r\n' + TIMES)], replied(b"1", OBJECT)),
    "list": (
        [ERROR, replied(), listing(b"ListBucketResult", ONE % b"")],
        listing(b"ListBucketResult", ONE % ETAG),
    ),
    "begin": (
        [ERROR, replied()],
        replied(b"<InitiateMultipartUploadResult><UploadId>v</UploadId></InitiateMultipartUploadResult>"),
    ),
    "part": ([ERROR, replied()], replied(headers=OBJECT)),
    "parts": (
        [ERROR, replied(), listing(b"ListPartsResult", b"<Part><PartNumber>1</PartNumber></Part>")],
        listing(b"ListPartsResult", b"<Part><PartNumber>1</PartNumber><Size>1</Size>%s</Part>" % ETAG),
    ),
    "uploads": (
        [ERROR, replied()],
        listing(
            b"ListMultipartUploadsResult",
            b"<Upload><Key>k</Key><UploadId>v</UploadId><Initiated>%s</Initiated></Upload>" % MODIFIED,
        ),
    ),
    "complete": (
        [ERROR, replied(b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")],
        replied(b"<CompleteMultipartUploadResult>%s</CompleteMultipartUploadResult>" % ETAG),
    ),
}


async def called(storage: S3Storage, operation: str) -> object:  # noqa: PLR0911 - one line for each operation
    upload, parts = upload_of(OnlyCreate())
    match operation:
        case "put":
            return version_of(await storage.put("k", b"1"))
        case "head":
            found = await storage.head("k")
            return found and found.version
        case "read":
            return (await storage.read("k")).info.version
        case "list":
            entry = await anext(storage.list_objects())
            return isinstance(entry, ObjectInfo) and entry.version
        case "begin":
            begun = await storage.begin_upload("k", size_bytes=1, part_bytes=5 << 20)
            return isinstance(begun, Upload) and begun.upload_id
        case "part":
            return (await storage.put_part(upload, 1, b"abc")).tag.strip('"')
        case "parts":
            return (await storage.list_parts(upload))[0].tag
        case "uploads":
            return (await anext(storage.list_uploads())).upload_id
        case _:
            return version_of(await storage.complete_upload(upload, parts))


@pytest.mark.parametrize("operation", HALF_REPLIES)
async def test_a_reply_that_does_not_tell_what_it_has_to_is_asked_for_again(operation):
    halves, whole = HALF_REPLIES[operation]
    async with raw_server(*halves, whole) as (endpoint, bodies):
        storage = await opened(endpoint)
        assert await called(storage, operation) == "v"
        assert len(bodies) == len(halves) + 1
        await storage.aclose()


@pytest.mark.parametrize("operation", HALF_REPLIES)
async def test_a_server_that_never_tells_it_is_a_clear_error(operation):
    halves, _ = HALF_REPLIES[operation]
    async with raw_server(*halves[-1:] * 3) as (endpoint, _):
        storage = await opened(endpoint, RetryPolicy(base_s=0.001, max_attempts=3))
        with pytest.raises(StorageError, match="the reply tells no ") as caught:
            await called(storage, operation)
        assert caught.value.retryable
        await storage.aclose()


async def test_a_412_where_nothing_was_conditional_is_no_replaced_object():
    storage, _ = scripted(get_object=[refusal("PreconditionFailed", 412)] * 2)
    with pytest.raises(StorageError, match="412") as caught:
        await storage.read("k")
    assert not isinstance(caught.value, ConditionFailedError)
    with pytest.raises(ConditionFailedError, match="replaced"):
        async with storage.get("k", version="v"):
            pass


async def test_a_file_is_sent_from_its_beginning_each_time(tmp_path):
    data = pattern(3 << 20)
    source = FileRange(await file_of(tmp_path, data), 0, len(data))
    stored = b"HTTP/1.1 200 OK\r\n" + KEPT
    # Nothing at all on a connection that was in use before: aiohttp itself sends such a request again.
    async with raw_server(stored, b"", b"HTTP/1.1 503 Slow\r\nContent-Length: 0\r\n\r\n", stored) as (
        endpoint,
        bodies,
    ):
        storage = await opened(endpoint)
        for _ in range(2):
            assert await storage.put("k", source) == Stored("v")
        assert [body == data for body in bodies] == [True] * 4
        await storage.aclose()
