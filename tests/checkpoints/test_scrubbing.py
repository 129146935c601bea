"""What may be a credential is left out of other people's text, and the rest of it is left."""

from __future__ import annotations

import pytest

from asynctune.checkpoints.scrubbing import (
    printable_end,
    scrubbed,
    scrubbed_end,
    secret_options,
    secret_values,
)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@host/x",
        "s3://me:hunter2/and@bucket/x",
        "GET https://bucket.example/x?X-Amz-Signature=hunter2&a=b HTTP/1.1",
        "https://account.example/c?sv=2024&sig=hunter2",
        "aws_secret_access_key = hunter2",
        "AWS_SESSION_TOKEN=hunter2",
        '{"password": "hunter2 with more", "x": 1}',
        "tool --secret-key hunter2 s3://bucket",
        "tool --password='hunter2 with more'",
        "Authorization: Bearer hunter2",
        "authorization: AWS4-HMAC-SHA256 Credential=hunter2/20260101/x, Signature=hunter2",
        "account key: accountkey=hunter2;EndpointSuffix=x",
    ],
)
def test_what_looks_like_a_credential_is_left_out(text):
    assert "hunter2" not in scrubbed(text)


def test_key_ids_are_left_out():
    assert scrubbed("the id AKIAIOSFODNN7EXAMPLE is wrong") == "the id [...] is wrong"


@pytest.mark.parametrize(
    "text",
    [
        "upload failed: ./model.bin to s3://bucket/exp/model.bin An error occurred (AccessDenied): Access Denied",
        "An error occurred (InvalidAccessKeyId) when calling the PutObject operation: it does not exist",
        "the security token included in the request is expired",
        "rsync: [sender] change_dir '/a/b' failed: No such file or directory (2)",
        "fatal error: could not connect to https://bucket.example:9000/x/y",
    ],
)
def test_what_a_message_says_stays(text):
    assert scrubbed(text) == text


def test_values_that_are_known_are_left_out_wherever_they_stand():
    secrets = secret_values(
        {
            "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn",
            "MY_API_TOKEN": "sesame-open",
            "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json",
            "HOME": "/root-of-all",
            "LANG": "C.UTF-8",
        }
    )
    assert secrets == {"wJalr/XUtn", "sesame-open"}
    assert scrubbed("x=wJalr/XUtn y=sesame-opener", secrets) == "x=[...] y=[...]er"
    assert scrubbed("a", {"a"}) == "a", "a word that a message may need"


def test_values_of_options_of_a_command():
    arguments = ["env", "B2_ACCESS_KEY=one111", "tool", "--secret", "two222", "--api-key=three3", "-v", "x"]
    assert secret_options(arguments) == {"one111", "two222", "three3"}


def test_the_end_of_an_output_can_be_read():
    drawn = "begin\r\nCompleted 1 MiB\rCompleted 2 MiB\r\n\x1b[31mfailed\x1b[0m: \x07no\tway\n\n"
    assert printable_end(drawn, 2048) == "begin\nCompleted 2 MiB\nfailed: no\tway"
    assert printable_end("x" * 50 + "end", 10) == "... xxxend"
    assert printable_end(" \n ", 10) == ""


@pytest.mark.parametrize(
    "text",
    ["a-", "x", "-", "--", "://", "://a@", "token='", "token=", 'token="a', "a:b://c@d?e ", "=", "bearer "],
)
def test_no_text_takes_long(text):
    """So that nobody's output can stop the event loop; a rule that looks back without a bound takes minutes here."""
    scrubbed(text * (1 << 18))


def test_a_secret_at_the_cut_is_not_half_shown():
    """Where what follows it is left out for the most part, so that even the beginning is shown."""
    rest = f"token={'s' * 1000}\nend"
    for most in range(130, 170):
        text = "begin " * 40 + "opensesame" * 20 + "\n" + rest
        shown = scrubbed_end(text, most, {"opensesame"})
        assert shown == "token=[...]\nend"
        in_one_line = scrubbed_end(text.replace("\n", " "), most, {"opensesame"})
        assert in_one_line.endswith("token=[...] end")
        assert "same" not in in_one_line
    assert scrubbed_end("s" * 1000, 100) == ""
